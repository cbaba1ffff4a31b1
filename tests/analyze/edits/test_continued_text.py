"""Continuations under edits: what `generate` writes, the next token's distribution, and a control."""

from functools import partial

import pytest
import torch

from saelens_lite.analyze.edits.continued_text import CLEAN, continuations, one_control
from saelens_lite.analyze.edits.latents import ablate, clamp
from saelens_lite.cli.steer import asked

from ..conftest import make_sae


@pytest.fixture
def spread_gpt2(gpt2):
    for parameter in gpt2.parameters():  # the random model hardly uses its parts
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return gpt2


def test_texts_and_probabilities_are_those_of_generate(spread_gpt2, byte_tokenizer):
    sae, model = make_sae(), spread_gpt2
    edit = partial(clamp, model, sae, [3, 5], [4.0, 0.5])
    found = continuations(model, byte_tokenizer, "ab", {"edited": edit}, max_new_tokens=4, n_next=3)
    ids = torch.tensor([[1, *byte_tokenizer("ab", add_special_tokens=False).input_ids]])
    with torch.no_grad():
        clean = model(ids).logits[0, -1].softmax(-1)
        with edit():
            edited = model(ids).logits[0, -1].softmax(-1)
            written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    for name, probabilities in ((CLEAN, clean), ("edited", edited)):
        shown = [share for _, share in found[name].next_tokens]
        torch.testing.assert_close(torch.tensor(shown), probabilities.topk(3).values)
    assert found["edited"].text == byte_tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    kl = float((clean * (clean.log() - edited.log())).sum())
    assert found[CLEAN].kl == 0.0 and found["edited"].kl == pytest.approx(kl, rel=1e-4) and kl > 0.01
    lines = str(found).splitlines()
    assert lines[1].split() == [CLEAN, "edited"] and f"KL from before: {kl:.3f} nats (edited)" in lines
    assert found.to_dict()["rows"][1]["name"] == "edited"
    assert not any(module._forward_hooks for module in model.modules())


def test_an_edit_that_does_nothing_writes_the_same(spread_gpt2, byte_tokenizer):
    sae = make_sae()
    with torch.no_grad():
        sae.W_enc[:, 7], sae.b_enc[7] = 0.0, -100.0  # latent 7 never fires
    found = continuations(spread_gpt2, byte_tokenizer, "ab", {"none": partial(ablate, spread_gpt2, sae, 7)})
    assert found["none"].text == found[CLEAN].text and found["none"].kl == 0.0


def test_the_control_is_a_matched_latent_of_its_own():
    sae, rates = make_sae(d_sae=6), torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1, 0.1])
    drawn = {int(one_control(sae, 1, rates, seed=seed).latents[0]) for seed in range(20)}
    assert drawn == {0, 3, 4, 5}  # neither itself nor the one that never fires
    control = one_control(sae, [0, 1], rates, seed=0)
    assert control.directions.shape == (1, 2, 32) and not {0, 1} & set(control.latents[0].tolist())
    assert int(one_control(sae, 2, rates).latents[0]) != 2  # never fires: by the norm alone
    assert one_control(sae, list(range(6)), rates) is None


def test_words_of_the_command():
    assert asked(["12=3", "4=-0.5"], "clamp") == ([12, 4], [3.0, -0.5])
    assert asked(["12"], "ablate") == ([12], [])
    for word, mode in (("12", "clamp"), ("12=3", "ablate"), ("a=3", "add"), ("1=--3", "scale")):
        with pytest.raises(ValueError, match="--latent expected a latent"):
            asked([word], mode)
