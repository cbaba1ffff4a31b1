"""Edits of a transcoder: z is read at its input, (z′ − z) · W_dec added where it writes."""

import pytest
import torch

from saelens_lite.analyze.edits.latents import ablate, clamp, replace_with_reconstruction, scale, steer
from saelens_lite.analyze.edits.stream_edit import Fires
from saelens_lite.lm.replacement import splice
from tests.lm.test_hooks import IDS
from tests.lm.test_transcoder_splice import WRITES, model_of, plain, transcoder_of

CHOSEN = [2, 7, 11]
CASES = {
    "ablate": (lambda *given: ablate(*given, skip_ids=()), lambda z: -z),
    "clamp": (lambda *given: clamp(*given, 2.5, skip_ids=()), lambda z: 2.5 - z),
    "steer": (lambda *given: steer(*given, 1.5, skip_ids=()), lambda z: torch.full_like(z, 1.5)),
}


@pytest.mark.parametrize(
    ("family", "case"),
    [("gpt2", "ablate"), ("gpt2", "steer"), ("gemma2", "clamp"), ("gemma3", "ablate"), ("neox", "ablate"),
     ("mixtral", "clamp")],
)  # fmt: skip
def test_an_edit_equals_two_plain_hooks(family, case):
    model = model_of(family)
    transcoder, (edit, difference) = transcoder_of(model.config.hidden_size), CASES[case]

    def by_hand(added, read):
        z = (read @ transcoder.W_enc + transcoder.b_enc).relu()[..., CHOSEN]
        return added + difference(z) @ transcoder.W_dec[CHOSEN]

    want = plain(family, by_hand)
    with torch.no_grad():
        clean = model(IDS).logits
        with edit(model, transcoder, CHOSEN):
            got = model(IDS).logits
        with scale(model, transcoder, CHOSEN, 1.0, skip_ids=()):
            assert torch.equal(model(IDS).logits, clean)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got - clean).abs().max() > 1e-3


def test_the_reconstruction_alone_is_the_splice():
    model = model_of("gpt2")
    transcoder = transcoder_of(model.config.hidden_size)
    with torch.no_grad():
        with splice(model, transcoder, positions="all"):
            want = model(IDS).logits
        with replace_with_reconstruction(model, transcoder, skip_ids=()):
            got = model(IDS).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_condition_reads_at_the_input():
    """Latent 7 moves where latent 2 fires, as read by the MLP, and nowhere else."""
    model = model_of("gpt2")
    transcoder = transcoder_of(model.config.hidden_size)

    def by_hand(added, read):
        z = (read @ transcoder.W_enc + transcoder.b_enc).relu()
        assert 0 < (z[..., 2] > 0).float().mean() < 1
        return added + torch.where(z[..., 2:3] > 0, 1.5 * transcoder.W_dec[7], torch.zeros(()))

    want = plain("gpt2", by_hand)
    with torch.no_grad(), steer(model, transcoder, 7, 1.5, skip_ids=(), when=Fires(2)):
        torch.testing.assert_close(model(IDS).logits, want, rtol=1e-5, atol=1e-5)


def test_generation_with_a_cache_is_that_without():
    model = model_of("gpt2")
    transcoder = transcoder_of(model.config.hidden_size)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    with clamp(model, transcoder, CHOSEN, 3.0):
        with_cache, without = (model.generate(IDS, use_cache=cache, **how) for cache in (True, False))
    assert torch.equal(with_cache, without)


def test_a_place_of_another_width_is_refused():
    model = model_of("gpt2")
    transcoder = transcoder_of(model.config.hidden_size)
    wide = "transformer.h.1.mlp.c_fc"
    expected = f"expected a place of width {transcoder.d_out} to write to, such as {WRITES}"
    with pytest.raises(ValueError, match=expected), ablate(model, transcoder, 2, hook_point=wide):
        pass
