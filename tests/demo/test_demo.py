"""The demo, with tiny settings: it runs, prints what it promises within 100 columns, and again on what it
left."""

import contextlib
import io

import pytest
import torch

from saelens_lite.cli.demo import COLUMNS, HOOK_POINT, DemoConfig, run_demo
from saelens_lite.demo.corpus import documents


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def config(output):
    return DemoConfig(output=str(output), max_tokens=12_000, d_sae=384, k=4, n_steps=30, progress=False)


@pytest.fixture(scope="module")
def run(config):
    """(what the demo found, what it printed)"""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        found = run_demo(config)
    return found, printed.getvalue()


@pytest.fixture(scope="module")
def found(run):
    return run[0]


@pytest.mark.long
def test_it_leaves_a_store_two_saes_and_a_page(found, output):
    assert found["page"] == output / "features.html" and found["page"].stat().st_size > 10_000
    assert (output / "topk" / "cfg.json").exists() and (output / "frozen" / "cfg.json").exists()
    names = [row.name for row in found["evaluation"].rows]
    assert names == ["trained", "baseline", "zero ablation", "mean ablation"]
    assert all(row.given and row.delta_ce is not None for row in found["evaluation"].rows)


@pytest.mark.long
def test_it_prints_what_it_found_within_the_terminal(run, config):
    found, out = run
    assert max(len(line) for line in out.splitlines() if config.output not in line) <= COLUMNS
    assert "trained SAE" in out and "frozen decoder" in out and "mean ablation" in out
    assert (
        all(f"latent {latent}, fires on" in out for latent in found["latents"]) and len(found["latents"]) == 5
    )


@pytest.mark.slow
def test_run_again_it_finds_the_same(found, config):
    again = run_demo(config)
    assert again["latents"] == found["latents"]
    assert again["evaluation"].rows == found["evaluation"].rows


@pytest.mark.long
def test_the_ablation_comes_with_its_control(found):
    ablation = found["ablation"]
    assert ablation is not None
    assert ablation.latent in found["latents"] and ablation.control != ablation.latent
    assert ablation.value > 0 and ablation.kl >= 0 and len(ablation.control_kls) >= 50
    for probabilities in (ablation.clean, ablation.ablated, ablation.controlled):
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.long
def test_a_control_is_pushed_as_far_as_the_ablation_pushes(found, embedded):
    """Ablation subtracts value · W_dec[latent] and the control value · W_dec[control]: rows of unit norm."""
    from saelens_lite import SparseAutoencoder
    from saelens_lite.lm.hooks import edit

    model, _ = embedded
    ablation = found["ablation"]
    sae = SparseAutoencoder.load(found["page"].parent / "topk")
    latents = [ablation.latent, ablation.control]
    torch.testing.assert_close(sae.W_dec[latents].norm(dim=1), torch.ones(2), atol=1e-4, rtol=0)

    directions = sae.W_dec[latents].detach()
    for direction, expected in zip(directions, (ablation.ablated, ablation.controlled)):

        def push(acts, info, direction=direction):
            pushed = acts.clone()
            pushed[0, -1] -= ablation.value * direction
            return pushed

        with torch.no_grad(), edit(model, HOOK_POINT, push):
            logits = model(input_ids=ablation.input_ids).logits[0, -1]
        # the store's bfloat16 rows give the value, the ablation its own in float32: 2⁻⁸ apart at most
        torch.testing.assert_close(logits.softmax(-1), expected, atol=2e-3, rtol=2e-2)


def test_documents_are_all_modules_in_an_order_of_the_seed(monkeypatch):
    modules = {"all": [{"name": f"{i:02}.py", "text": ""} for i in range(20)]}
    monkeypatch.setattr("saelens_lite.demo.corpus.stdlib_documents", modules.get)
    first, again, other = documents(0), documents(0), documents(1)
    names = [[document["name"] for document in some] for some in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == sorted(names[2]) == [module["name"] for module in modules["all"]]
