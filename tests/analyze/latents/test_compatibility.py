"""Whether an SAE fits: one wording for a model, a store and a place, and what naming a hook point means."""

import pytest
import torch

from saelens_lite.analyze.latents.compatibility import fits

from ..conftest import HOOK_POINT, make_sae

LATER = "blocks.1.hook_resid_post"


def test_the_sae_of_the_store_is_accepted(store):
    assert fits(make_sae(), store) == HOOK_POINT
    assert fits(make_sae(hook_point="", model_name=""), store) == HOOK_POINT
    assert fits(make_sae(model_name="someone/GPT2LMHeadModel"), store) == HOOK_POINT


@pytest.mark.parametrize(
    ("fields", "expected", "way_out"),
    [
        ({"d_model": 16}, "d_model=32, got one of d_model=16", "choose an SAE of this model"),
        (
            {"model_name": "pythia-70m"},
            "someone/gpt2-tiny, got one .* trained on pythia-70m",
            "pass hook_point=",
        ),
        ({"hook_point": LATER}, f"{HOOK_POINT}, got one .* {LATER}", "hook_point="),
    ],
)
def test_models_and_stores_refuse_an_sae_in_the_same_words(store, gpt2, fields, expected, way_out):
    gpt2.config._name_or_path = "someone/gpt2-tiny"
    sae = make_sae(**({"model_name": "gpt2-tiny"} | fields))
    of_store = expected.replace("someone/gpt2-tiny", "GPT2LMHeadModel")
    with pytest.raises(ValueError, match=f"the seed does not fit .*: expected one of {expected}.*{way_out}"):
        fits(sae, gpt2, HOOK_POINT, vouched=False, name="the seed")
    if "model_name" not in fields:
        sae = make_sae(**fields)
    with pytest.raises(
        ValueError, match=f"the seed does not fit .*store.*: expected one of {of_store}.*{way_out}"
    ):
        fits(sae, store, name="the seed")


def test_a_named_hook_point_is_vouched_for_by_the_caller(store, gpt2):
    gpt2.config._name_or_path = "someone/gpt2-tiny"
    other = make_sae(model_name="pythia-70m", hook_point=LATER)
    assert fits(other, store, HOOK_POINT) == fits(other, gpt2, HOOK_POINT) == HOOK_POINT
    with pytest.raises(ValueError, match="d_model=32, got one of d_model=16"):
        fits(make_sae(d_model=16), gpt2, HOOK_POINT)
    with pytest.raises(ValueError, match="has no hook point 'blocks.0.hook_resid_pst'.*did you mean"):
        fits(make_sae(), store, "blocks.0.hook_resid_pst")


def test_an_sae_that_says_nothing_needs_a_hook_point_of_a_model(gpt2):
    with pytest.raises(ValueError, match="the SAE does not say where it was trained: pass hook_point="):
        fits(make_sae(hook_point=""), gpt2)
    assert fits(make_sae(hook_point=""), gpt2, LATER) == LATER


def test_weights_that_are_not_finite_are_named(store):
    sae = make_sae()
    with torch.no_grad():
        sae.b_dec[0] = torch.inf
    with pytest.raises(ValueError, match="b_dec holds nan or infinity"):
        fits(sae, store)
