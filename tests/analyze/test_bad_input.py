"""What cannot be right is refused by every function that meets it: another model's SAE, no text, numbers that
are none."""

import numpy as np
import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.index.search import fires_on_text
from saelens_lite.analyze.probing.labelled_texts import read_labelled
from saelens_lite.errors import HookError
from saelens_lite.lm.forward_state import placed_inputs
from saelens_lite.misfits import names_misfits
from saelens_lite.sae import Crosscoder, Side, geometric_median

from .conftest import HOOK_POINT, make_sae

LATE = "blocks.1.hook_resid_post"
IDS = torch.tensor([[1, 70, 80, 90, 100, 110]])
ROWS = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
LABELS, DOCUMENTS = torch.arange(60) % 2 == 0, torch.arange(60)


def broken_rows():
    rows = ROWS.clone()
    rows[7, 3] = torch.nan
    return rows


def entered(context):
    with context:
        pass


def score(model):
    with torch.no_grad():
        return model(IDS).logits[0, 1:, 5]


def last_mean(logits):
    return logits[:, -1].mean()


ON_MODEL = {
    "ablate": lambda model, sae: entered(sl.ablate(model, sae, 3)),
    "clamp": lambda model, sae: entered(sl.clamp(model, sae, 3, 1.0)),
    "scale": lambda model, sae: entered(sl.edits.scale(model, sae, 3, 2.0)),
    "steer": lambda model, sae: entered(sl.steer(model, sae, 3, 1.0)),
    "replace_with_reconstruction": lambda model, sae: entered(sl.replace_with_reconstruction(model, sae)),
    "when": lambda model, sae: entered(sl.ablate(model, make_sae(), 3, when=sl.edits.Fires(3, sae=sae))),
    "dose_response": lambda model, sae: sl.edits.dose_response(
        model, sae, 3, [0.0, 1.0], score, n_resamples=20
    ),
    "direct_logit_attribution": lambda model, sae: sl.attribution.direct_logit_attribution(
        model, sae, 5, 6, input_ids=IDS
    ),
    "gradient_attribution": lambda model, sae: sl.attribution.gradient_attribution(
        model, sae, last_mean, input_ids=IDS
    ),
    "edge_attribution": lambda model, sae: sl.attribution.edge_attribution(
        model, sae, make_sae(hook_point=LATE), [(0, 5, 3)], input_ids=IDS
    ),
    "edge_ablation": lambda model, sae: sl.attribution.edge_ablation(
        model, sae, make_sae(hook_point=LATE), [(0, 5, 3)], torch.tensor([[0, 3]]), input_ids=IDS
    ),
}
ON_STORE = {
    "evaluate_sae": lambda store, sae: sl.evaluate_sae(sae, store, held_out=False),
    "max_activating_tokens": lambda store, sae: sl.max_activating_tokens(sae, store),
    "dead_latents": lambda store, sae: sl.dead_latents(sae, store),
    "latent_density": lambda store, sae: sl.latents.latent_density(sae, store),
    "index_features": lambda store, sae: sl.index_features(sae, store, store.path / "index"),
    "feature_page": lambda store, sae: sl.feature_page(sae, store, store.path / "page.html"),
    "fit_anomaly": lambda store, sae: sl.analyze.fit_anomaly(sae, store),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ON_MODEL)
def test_an_sae_of_another_model_is_refused_with_both_named(gpt2, name):
    ON_MODEL[name](gpt2, make_sae(model_name="pythia-70m"))  # a model without a name may be any
    gpt2.config._name_or_path = "someone/gpt2-tiny"
    with pytest.raises(ValueError, match=f"{HOOK_POINT}.*gpt2-tiny.*pythia-70m at {HOOK_POINT}.*hook_point="):
        ON_MODEL[name](gpt2, make_sae(model_name="pythia-70m"))
    with pytest.raises(ValueError, match="d_model=32, got one of d_model=16, trained on GPT2LMHeadModel"):
        ON_MODEL[name](gpt2, make_sae(d_model=16))
    with pytest.raises(HookError, match="no hook point 'blocks.9.hook_resid_post' in GPT2LMHeadModel"):
        ON_MODEL[name](gpt2, make_sae(hook_point="blocks.9.hook_resid_post"))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.modules())


@pytest.mark.parametrize(
    "named",
    [
        "gpt2-tiny",
        "other/GPT2-tiny",
        "/models/gpt2-tiny/snapshots/1a2b",
        "models--someone--gpt2-tiny",
        "",
        "GPT2LMHeadModel",
    ],
)
def test_names_of_one_model_may_differ_in_owner_and_folder(gpt2, named):
    gpt2.config._name_or_path = "someone/gpt2-tiny"
    entered(sl.ablate(gpt2, make_sae(model_name=named), 3))
    if named.startswith("/"):
        gpt2.config._name_or_path = named
        entered(sl.ablate(gpt2, make_sae(model_name="gpt2-tiny"), 3))


def test_a_named_hook_point_is_vouched_for_by_the_caller(gpt2):
    gpt2.config._name_or_path = "someone/gpt2-tiny"
    other = make_sae(model_name="pythia-70m")
    entered(sl.ablate(gpt2, other, 3, hook_point=HOOK_POINT))
    entered(sl.ablate(gpt2, make_sae(), 3, when=sl.edits.Fires(3, sae=other, hook_point=HOOK_POINT)))
    sl.attribution.gradient_attribution(gpt2, other, last_mean, hook_point=HOOK_POINT, input_ids=IDS)


@pytest.mark.parametrize("name", ON_STORE)
def test_an_sae_that_does_not_fit_the_store_or_is_broken_is_refused(store, name):
    with pytest.raises(ValueError, match="GPT2LMHeadModel.*pythia-70m"):
        ON_STORE[name](store, make_sae(model_name="pythia-70m"))
    with pytest.raises(ValueError, match=f"{HOOK_POINT}.*{LATE}"):
        ON_STORE[name](store, make_sae(hook_point=LATE))
    broken = make_sae()
    with torch.no_grad():
        broken.W_enc[3, 4] = torch.nan
    with pytest.raises(ValueError, match="finite weights, W_enc holds nan"):
        ON_STORE[name](store, broken)


@pytest.mark.parametrize(
    "call",
    [
        lambda sae: sl.latent_stats(sae, [ROWS, broken_rows()]),
        lambda sae: sl.analyze.fit_anomaly(sae, broken_rows()),
        lambda sae: sl.analyze.fit_anomaly(sae, ROWS).scores(broken_rows()),
        lambda sae: sl.stats.select_latents(sae, broken_rows(), LABELS, DOCUMENTS),
        lambda sae: sl.edits.diff_mean(broken_rows(), LABELS),
        lambda sae: sl.edits.probe_direction(broken_rows(), LABELS),
        lambda sae: sl.probing.feature_splitting(sae, broken_rows(), LABELS, DOCUMENTS),
        lambda sae: sl.probing.label_absorption(sae, broken_rows(), {"even": LABELS}, DOCUMENTS),
    ],
)
def test_rows_that_are_not_finite_are_refused(call):
    with pytest.raises(ValueError, match="finite.*(row 7|token 67)"):
        call(make_sae())


def test_labelled_texts_of_an_empty_file_and_probes_of_a_broken_sae_are_refused(
    gpt2, byte_tokenizer, tmp_path
):
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(ValueError, match="none.jsonl expected labelled texts, got an empty file"):
        read_labelled(str(tmp_path / "none.jsonl"))
    broken = make_sae()
    with torch.no_grad():
        broken.W_enc[3, 4] = torch.nan
    with pytest.raises(ValueError, match="finite weights, W_enc holds nan"):
        sl.probing.pooled_latents(gpt2, byte_tokenizer, ["a text"], broken)


def test_a_model_that_gives_nan_is_refused_where_numbers_come_back(gpt2, byte_tokenizer):
    sae, late = make_sae(), make_sae(hook_point=LATE)
    with torch.no_grad():
        gpt2.transformer.wte.weight[90] = torch.nan
    for call, match in (
        (
            lambda: sl.attribution.gradient_attribution(gpt2, sae, last_mean, input_ids=IDS),
            "finite number, got nan",
        ),
        (
            lambda: sl.attribution.edge_attribution(gpt2, sae, late, [(0, 5, 3)], input_ids=IDS),
            r"nan or infinity at .*\(0, 5\)",
        ),
        (
            lambda: sl.attribution.edge_ablation(
                gpt2, sae, late, [(0, 5, 3)], torch.tensor([[0, 3]]), input_ids=IDS
            ),
            "nan or infinity",
        ),
        (lambda: sl.logit_lens(sae, gpt2), "expected finite logits"),
        (lambda: fires_on_text(sae, gpt2, byte_tokenizer, byte_tokenizer.decode([90])), "finite activations"),
        (lambda: sl.edits.dose_response(gpt2, sae, 3, [1.0], score), "finite numbers, got nan"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize(
    "edit, match",
    [
        (
            lambda m, s: sl.ablate(m, s, 3, value="mean", mean=torch.full((48,), torch.nan)),
            "mean expected finite numbers",
        ),
        (
            lambda m, s: sl.ablate(m, s, 3, value="resample", reference=broken_rows()),
            "reference expected finite",
        ),
        (
            lambda m, s: sl.edits.steer_direction(m, ROWS[0], float("nan"), hook_point=HOOK_POINT),
            "strength expected a finite",
        ),
        (lambda m, s: sl.ablate(m, s, 3, when=sl.edits.Fires(3, float("nan"))), "got above=nan"),
    ],
)
def test_edits_by_no_number_are_refused(gpt2, edit, match):
    with pytest.raises(ValueError, match=match):
        entered(edit(gpt2, make_sae()))


def test_no_text_and_no_items_are_refused(gpt2, byte_tokenizer):
    sae, late, none = make_sae(), make_sae(hook_point=LATE), IDS[:, :0]
    for call, match in (
        (
            lambda: sl.attribution.direct_logit_attribution(gpt2, sae, 5, 6, input_ids=none),
            r"at least one token, got .*\[1, 0\]",
        ),
        (
            lambda: sl.attribution.gradient_attribution(gpt2, sae, last_mean, input_ids=none),
            "at least one token",
        ),
        (
            lambda: sl.attribution.edge_attribution(gpt2, sae, late, [(0, 0, 3)], input_ids=none),
            "at least one token",
        ),
        (
            lambda: sl.attribution.edge_attribution(gpt2, sae, late, [(0, 0, 3.5)], input_ids=IDS),
            "whole numbers",
        ),
        (lambda: placed_inputs(gpt2, {"input_ids": IDS[:0]}), r"\[0, 6\]"),
        (lambda: fires_on_text(sae, gpt2, byte_tokenizer, ""), "an empty one"),
        (lambda: sl.stats.cluster_bootstrap(torch.zeros(0)), "at least 2 items"),
        (
            lambda: sl.edits.dose_response(gpt2, sae, 3, [1.0], lambda model: torch.zeros(0)),
            "at least 2 items",
        ),
        (lambda: sl.latent_stats(sae, [ROWS[:0]]), "no tokens"),
        (lambda: sl.analyze.fit_anomaly(sae, ROWS[:0]), "got"),
        (lambda: sl.stats.select_latents(sae, ROWS[:0], LABELS[:0], DOCUMENTS[:0]), "both labels"),
        (lambda: sl.stats.auroc(ROWS[:0, 0], ROWS[:0, 0]), "got"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("latent", [48, -1, 1.5])
def test_latents_out_of_range_are_refused_by_an_index(store, tmp_path, latent):
    index = sl.index_features(make_sae(), store, tmp_path / "index")
    with pytest.raises(ValueError, match=f"a latent from 0 to 47, got {latent}"):
        index[latent]


# Plausible mistakes -----------------------------------------------------------------------------------------


@pytest.fixture
def folders(store, tmp_path):
    """(store, SAE, their folders)."""
    sae = make_sae()
    sae.save(tmp_path / "sae")
    return store, sae, tmp_path / "store", str(tmp_path / "sae")


def test_a_folder_of_a_store_or_sae_is_opened(folders, gpt2, tmp_path):
    store, sae, of_store, of_sae = folders
    expected = sl.evaluate_sae(sae, store, held_out=False, max_tokens=200).row("trained").fvu
    found = sl.evaluate_sae(of_sae, str(of_store), held_out=False, max_tokens=200, seeds=[], baseline=of_sae)
    assert found.row("trained").fvu == found.row("baseline").fvu == expected
    same = sl.latents.latent_density(of_sae, of_store).counts, sl.latents.latent_density(sae, store).counts
    torch.testing.assert_close(*same)
    torch.testing.assert_close(sl.latent_stats(of_sae, of_store).max, sl.latent_stats(sae, store).max)
    with sl.ablate(gpt2, of_sae, [3]):
        edited = score(gpt2)
    with sl.ablate(gpt2, sae, [3]):
        torch.testing.assert_close(edited, score(gpt2))
    assert len(sl.index_features(of_sae, of_store, tmp_path / "index")) == sae.d_sae


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, s, st: sl.evaluate_sae(s, 3), "evaluate_sae expected store as an ActivationStore or its"),
        (lambda m, s, st: sl.evaluate_sae(7, st), "evaluate_sae expected sae as a SparseAutoencoder or its"),
        (lambda m, s, st: sl.evaluate_sae(s, st, seeds=[None]), "seeds as a SparseAutoencoder.*got NoneType"),
        (lambda m, s, st: entered(sl.ablate("demo", s, [1])), "a language model, got its name 'demo'"),
        (lambda m, s, st: sl.hook_points("gpt2"), "expected a language model, got its name 'gpt2'"),
        (lambda m, s, st: sl.hook_points(None), "expected a language model, got NoneType"),
        (lambda m, s, st: s.encode(ROWS.numpy()), "encode expected a tensor acts.*got ndarray"),
        (lambda m, s, st: s([[0.0] * 32]), "encode expected a tensor acts.*got list"),
        (lambda m, s, st: s.encode(torch.tensor(3.0)), r"got \[\]"),
        (lambda m, s, st: s.encode(broken_rows()), "finite activations, got NaN or infinity in 1 of 60 rows"),
        (lambda m, s, st: sl.edits.diff_mean(ROWS.numpy(), LABELS), "diff_mean expected acts as a tensor"),
        (lambda m, s, st: sl.edits.matched_latents(s, [1], [0.1] * 48), "rates as a tensor, got list"),
        (lambda m, s, st: entered(sl.ablate(m, s, ["7"])), r"latents expected indices, got \['7'\]"),
        (lambda m, s, st: entered(sl.steer(m, s, [1], "2")), "strength expected a number.*got '2'"),
        (lambda m, s, st: sl.feature_page(s, st, "page.html", latents=[]), "latents expected at least one"),
        (lambda m, s, st: st.gather([0.9]), "gather expected rows as whole numbers, got torch.float32"),
        (lambda m, s, st: st.mean([HOOK_POINT]), "expected the name of one hook point, got list"),
        (
            lambda m, s, st: sl.edits.dose_response(m, s, [1], [1.0], score, alternative="bigger"),
            "alternative expected one of .*got 'bigger'",
        ),
        (
            lambda m, s, st: sl.SparseLatents.from_topk(torch.rand(3, 2), torch.tensor([[0, 1]]), 5),
            r"of one shape, got \[3, 2\] and \[1, 2\]",
        ),
    ]
    + [
        (
            lambda m, s, st, ids=ids: sl.attribution.direct_logit_attribution(m, s, *ids, input_ids=IDS),
            "expected a token id",
        )
        for ids in ((-1,), (5.9,), (5, 6.5), (5, True))
    ],
)
def test_a_plausible_mistake_says_what_was_expected(call, said, gpt2, store):
    with pytest.raises((ValueError, TypeError), match=said):
        call(gpt2, make_sae(), store)


@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu", "gated"])
def test_no_kind_encodes_a_row_that_is_no_number(kind):
    with pytest.raises(ValueError, match="in 1 of 60 rows"):
        make_sae(kind).encode(broken_rows())


def test_one_latent_of_an_index_is_named_rightly(store, tmp_path):
    index = sl.index_features(make_sae(), store, tmp_path / "index")
    assert int(index.row("counts", 3)) == int(index.column("counts")[3])
    for latent in (-3, 48, 1.5, "3"):
        with pytest.raises(ValueError, match=f"expected a latent from 0 to 47, got {latent}"):
            index.row("counts", latent)
    with pytest.raises(ValueError, match="has no 'nope': expected one of"):
        index.row("nope", 3)
    with pytest.raises(ValueError, match="IndexConfig.seed expected int, got float 0.5"):
        sl.IndexConfig(seed=0.5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda s, m: sl.lm.kl_divergence("x", ROWS),
            "kl_divergence expected clean_logits as Tensor, got str 'x'",
        ),
        (lambda s, m: sl.stats.auroc("mean", ROWS[0]), "auroc expected normal as .*, got str 'mean'"),
        (lambda s, m: sl.stats.cluster_bootstrap(ROWS[0], seed=()), "expected seed as int, got tuple"),
        (lambda s, m: sl.ActivationStore(3.5), "expected path as .*, got float 3.5"),
        (lambda s, m: s.save(torch.ones(2)), r"save expected folder as .*, got Tensor torch.float32 \[2\]"),
        (lambda s, m: sl.lm.token_of(None, "x"), "token_of expected tokenizer as a tokenizer, got NoneType"),
        (lambda s, m: sl.latents.best_pairing(ROWS.to_sparse()), "dense array, no sparse tensor"),
        (lambda s, m: sl.latents.mmcs(ROWS, ROWS[:, :4]), r"got \[60, 32\] and \[60, 4\]"),
        (lambda s, m: sl.latents.best_pairing(ROWS[0]), r"similarity\[n m\], got \[32\]"),
        (lambda s, m: s.decode(ROWS), r"decode expected latents\[..., d_sae=48\], got \[60, 32\]"),
        (lambda s, m: s.latent_acts([1.0]), "tensor acts.*got list"),
        (
            lambda s, m: sl.stats.Split(test_fraction="half"),
            "Split.test_fraction expected float, got str 'half'",
        ),
        (lambda s, m: sl.stats.Split().tests(torch.tensor(3)), r"tests expected documents\[n\], got \[\]"),
        (
            lambda s, m: sl.edits.diff_mean(ROWS, LABELS, ROWS),
            r"documents\[n_items\], one an item, got \[60, 32\]",
        ),
        (
            lambda s, m: sl.lm.run_to(m, [HOOK_POINT], input_ids=ROWS),
            "input_ids as a tensor of whole numbers",
        ),
        (lambda s, m: sl.edits.NeutralText(input_ids=[[1, 2]]), "input_ids expected a tensor, got list"),
        (lambda s, m: crosscoder().block(""), "block expected side as int, got str ''"),
        (lambda s, m: crosscoder().decoder([-1]), "side as int, got list"),
        (lambda s, m: crosscoder().lean(ROWS), "lean expected side as int, got Tensor"),
        (lambda s, m: Crosscoder.of_scaled(ROWS, ()), "sae as SparseAutoencoder, got Tensor"),
        (lambda s, m: Crosscoder.of_state(None, {}, "x"), "expected config as SAEConfig, got NoneType"),
        (lambda s, m: geometric_median(ROWS.long()), r"rows float\[n d\], got torch.int64 \[60, 32\]"),
        (lambda s, m: geometric_median([1.0]), "geometric_median expected rows as Tensor, got list"),
        (lambda s, m: sl.edits.random_directions(s, [1], seed=0.5), "expected seed as int, got float 0.5"),
    ],
)
def test_an_error_further_inside_names_the_argument_that_did_not_fit(call, said, gpt2):
    with pytest.raises((ValueError, TypeError), match=said):
        call(make_sae(), gpt2)


def crosscoder():
    sides = (Side(d_model=16), Side(d_model=16))
    return Crosscoder(sl.SAEConfig(d_model=32, d_sae=48, kind="relu", sides=sides))


def test_seeds_of_numpy_are_ints():
    """As they come out of an array of seeds."""
    one, other = np.arange(2, dtype=np.int64)
    drawn, same, others = (
        sl.edits.random_directions(make_sae(), [1], seed=seed).directions for seed in (one, 0, other)
    )
    assert torch.equal(drawn, same) and not torch.equal(drawn, others)
    values = torch.arange(9.0)
    found, same = (sl.stats.cluster_bootstrap(values, seed=seed) for seed in (one, 0))
    assert (found.low, found.high) == (same.low, same.high)


def test_an_error_of_ours_stays_as_it_is_where_all_arguments_fit():
    @names_misfits
    def broken(rows: torch.Tensor, n: int = 3) -> int:
        return {}[n]

    with pytest.raises(KeyError):
        broken(ROWS)
    with pytest.raises(TypeError, match="broken expected n as int, got str '3'") as found:
        broken(ROWS, "3")
    assert isinstance(found.value.__cause__, KeyError)
