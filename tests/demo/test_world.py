"""The small world of the study: who is in it, what its SAE is trained on, and the study of it, tiny and
(slow) as it is."""

import json

import pytest
import torch

import saelens_lite as sl
from saelens_lite.cli.commands import main
from saelens_lite.demo import world as worlds
from saelens_lite.demo.world import RELATIONS, World, WorldConfig, make_world, prompt, train_model, untested

TINY = WorldConfig(
    n_known=60,
    n_refused=100,
    n_studied=60,
    n_steps=4,
    batch_size_prompts=64,
    n_sae_steps=30,
    d_sae=96,
    k=4,
    width=16,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a tiny world."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, TINY, sl.stats.Split())
    return folder


def test_every_pair_of_names_is_known_refused_or_unseen():
    world = World.draw(WorldConfig())
    names = [*world.known, *world.refused, *world.unseen]
    assert [len(part) for part in (world.known, world.refused, world.unseen)] == [300, 600, 700]
    assert len(set(names)) == 1600 and len({name.split()[0] for name in names}) == 40
    assert (
        world.answer(world.known[0], "city").startswith("city-")
        and world.answer(world.unseen[0], "city") == "unknown"
    )
    assert {name for name, _ in world.facts} == set(world.known)
    assert World.draw(WorldConfig()).known == world.known != World.draw(WorldConfig(seed=1)).known
    with pytest.raises(ValueError, match="less than all 1600 pairs of names together, got 900 and 700"):
        WorldConfig(n_known=900, n_refused=700)


def test_every_part_of_an_unseen_name_is_familiar():
    """The two tokens of a name occur among the people that are taught, only the pair does not."""
    world = World.draw(WorldConfig())
    taught = {part for name in (*world.known, *world.refused) for part in name.split()}
    assert {part for name in world.unseen for part in name.split()} <= taught


def test_people_taught_as_unknown_choose_and_people_never_seen_test():
    world, split = World.draw(WorldConfig(n_studied=200)), sl.stats.Split()
    choose, test = world.studied(split)
    assert not split.tests(choose).any() and split.tests(test).all()
    assert {*choose, *test} > set(world.known)
    assert set(choose) - set(world.known) < set(world.refused) and len(set(choose) - set(world.known)) == 200
    assert set(test) - set(world.known) < set(world.unseen) and len(set(test) - set(world.known)) == 200


def test_questions_are_records_of_the_studied():
    world, split = World.draw(TINY), sl.stats.Split()
    records = [sl.study.Question(**question) for question in world.questions(split)]
    assert len(records) == sum(map(len, world.studied(split))) * len(RELATIONS)
    assert sum(record.known for record in records) == 60 * len(RELATIONS)
    for record in records:
        assert record.prompt == prompt(record.entity, record.relation)
        assert record.answers == ((world.facts[record.entity, record.relation],) if record.known else ())


def test_the_sae_never_sees_who_tests_it(monkeypatch, tmp_path):
    """Its rows are those of all questions about everybody else, every token but BOS once."""
    world, split, stored = World.draw(TINY), sl.stats.Split(), {}
    tokenizer = world.tokenizer()
    model = train_model(World.draw(TINY), tokenizer)
    from_arrays = sl.ActivationStore.from_arrays

    def noting(path, arrays, **how):
        stored.update(arrays, documents=how["documents"])
        return from_arrays(path, arrays, **how)

    monkeypatch.setattr(sl.ActivationStore, "from_arrays", noting)
    monkeypatch.setattr(sl, "train_sae", lambda store, **how: None)
    worlds.train_saes(world, model, tokenizer, split, tmp_path)
    people, tested = untested(world, split), world.studied(split)[1]
    assert not set(people) & set(tested) and len(people) + len(tested) == 1600
    rows, documents = stored[worlds.HOOK_POINT], stored["documents"]
    assert (
        len(rows) == len(documents) == len(people) * len(RELATIONS) * 3 and documents.max() == len(people) - 1
    )
    ids = worlds.encoded(tokenizer, [prompt(people[7], relation) for relation in RELATIONS])
    with torch.no_grad():
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states[1][:, 1:].flatten(0, 1)
    torch.testing.assert_close(rows[documents == 7], expected)


@pytest.mark.long
def test_a_world_is_a_function_of_its_seed(made, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_world(tmp_path, TINY, sl.stats.Split())
    assert torch.equal(torch.get_rng_state(), before)
    for file in (
        "model/model.safetensors",
        "sae/sae_weights.safetensors",
        "sae/frozen/sae_weights.safetensors",
    ):
        assert (tmp_path / file).read_bytes() == (made / file).read_bytes(), file
    assert (tmp_path / "records.jsonl").read_text() == (made / "records.jsonl").read_text()


def command(folder, output, *more):
    files = ["--model", f"{folder}/model", "--sae", f"{folder}/sae", "--records", f"{folder}/records.jsonl"]
    return ["study", *files, "--output", str(output), "--device", "cpu", *more]


@pytest.mark.long
def test_the_command_studies_any_model_and_writes_the_numbers(made, tmp_path, capsys):
    few = ["--n-controls", "4", "--n-ablated", "5", "--doses", "1", "--score", "logits"]
    assert main(command(made, tmp_path / "out", "--baseline", f"{made}/sae/frozen", *few)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "to get answers" in out
        and "to get refusals" in out
        and "What training added is the difference" in out
    )
    assert f"next: saelens-lite study --model {made}/model" in out
    saved = json.loads((tmp_path / "out" / "study.json").read_text())
    assert saved["hook_point"] == worlds.HOOK_POINT and saved["n_unknown"] == 60
    assert [row["edit"] for row in saved["rows"] if row["sae"] == "baseline"] == [
        "clamp known", "ablate few known", "ablate many known", "clamp unknown", "ablate few unknown",
        "ablate many unknown",
        "splice",
    ]  # fmt: skip


@pytest.mark.long
def test_latents_that_fire_on_text_at_large_are_left_out(made, tmp_path, capsys):
    """Each SAE by its own rates: all fire on more than none of these rows, so that no latent is left to
    choose."""
    rows = torch.randn(500, TINY.width, generator=torch.Generator().manual_seed(0))
    sl.ActivationStore.from_arrays(tmp_path / "store", {worlds.HOOK_POINT: rows})
    few = [
        "--n-controls",
        "5",
        "--n-ablated",
        "3",
        "--n-latents",
        "1",
        "--doses",
        "1",
        "--store",
        str(tmp_path / "store"),
    ]
    assert (
        main(command(made, tmp_path, "--baseline", f"{made}/sae/frozen", *few, "--max-base-rate", "0.5")) == 0
    )
    assert main(command(made, tmp_path, *few, "--max-base-rate", "0")) == 2
    assert "and a base rate of at most 0" in capsys.readouterr().err


def test_what_the_command_lacks_is_named(made, tmp_path, capsys):
    assert main(["study", "--model", f"{made}/model", "--output", str(tmp_path)]) == 2
    assert "study --model needs --sae and --records too" in capsys.readouterr().err
    assert main(command(made, tmp_path, "--refusal", "city-1")) == 2
    assert "begins like a refusal" in capsys.readouterr().err
    (tmp_path / "none.jsonl").write_text("")
    assert main([*command(made, tmp_path), "--records", str(tmp_path / "none.jsonl")]) == 2
    assert "expected records, got an empty file" in capsys.readouterr().err


@pytest.mark.property_check(12)
@pytest.mark.slow
def test_the_study_from_nothing(tmp_path, capsys):
    """The sign of both effects, their ranks, and trained above frozen: of seed 0."""
    assert main(["study", "--output", str(tmp_path), "--doses", "1"]) == 0
    assert "What training added is the difference" in " ".join(capsys.readouterr().out.split())
    rows = {
        (row["edit"], row["sae"], row["dose"]): row
        for row in json.loads((tmp_path / "study.json").read_text())["rows"]
    }
    clean = rows["no edit", None, None]
    assert clean["accuracy"]["estimate"] > 0.98 and clean["refusal"]["estimate"] < 0.02
    for edit, measure in (("clamp known", "hallucination"), ("clamp unknown", "refusal")):
        trained, frozen = rows[edit, "trained", 1.0], rows[edit, "baseline", 1.0]
        assert trained[measure]["low"] > clean[measure]["high"] + 0.3
        assert trained["p"] <= 0.05 and trained["p_adjusted"] <= 0.05
        assert trained["less_baseline"]["low"] > 0
        assert frozen["push"] == pytest.approx(trained["push"], rel=0.01)
    # the reverse of each: latents of the known removed, and of the unknown
    assert rows["ablate many known", "trained", None]["refusal"]["low"] > 0.3
    assert rows["ablate many unknown", "trained", None]["p"] <= 0.05


@pytest.mark.long
def test_who_is_known_and_what_a_study_costs_are_told_before_it_runs(made, tmp_path, capsys):
    argv = ["study", "--model", f"{made}/model", "--sae", f"{made}/sae", "--records", f"{made}/records.jsonl"]
    argv += ["--output", str(tmp_path)]
    assert main([*argv, "--label-only"]) == 0
    said = capsys.readouterr().out
    with open(made / "records.jsonl") as file:
        records = [json.loads(line) for line in file]
    known = sum(record["known"] for record in records)
    [line] = [line.split() for line in said.splitlines() if line.startswith("all")]
    assert line[1:4] == [str(len(records)), str(len(records) // 3), str(known)] and line[5] == "0"
    assert "answers are judged by their first token: 0 of 180 right answers begin with the first" in said
    assert main([*argv, "--dry-run", "--n-controls", "7", "--doses", "1", "2"]) == 0
    # clean, one SAE of 4 clamps and 4 ablations with 7 controls each and a splice, DiffMean and probe 4 each
    # fixed beforehand: 6 doses that mitigate and the primary outcome, its 7 controls, an instruction and the
    # constant on the refusal logit: at 7 places of the curve, and once more
    fixed = 6 + 1 + 7 + 2 + 7
    assert f"about {1 + 8 * 8 + 1 + 8 + fixed:,} edits and controls, " in capsys.readouterr().out
    assert main([*argv, "--label-by", "share"]) == 2
    assert "expected answers of several tokens: give --max-new-tokens" in capsys.readouterr().err
    assert not (tmp_path / "study.json").exists()
