"""A text of one's own: its latents are those of the model's stream, by token and by latent."""

import pytest
import torch

import saelens_lite as sl
from tests.analyze.conftest import make_sae


@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("layer, point", [(0, "blocks.0.hook_resid_post"), (1, "blocks.1.hook_resid_pre")])
def test_the_latents_are_those_of_the_stream(gpt2, byte_tokenizer, kind, layer, point):
    sae = make_sae(kind, hook_point=point)
    encoded = sl.encode_text(gpt2, byte_tokenizer, sae, "sun é")
    assert encoded.tokens[1:] == ("s", "u", "n", " ", "é", "⟨0xA9⟩") and encoded.n_bos == 1
    with torch.no_grad():
        stream = gpt2(input_ids=encoded.ids[None], output_hidden_states=True).hidden_states[1][0]
        dense = sae.encode_dense(stream)
    assert len(encoded) == 7
    for latent in range(48):
        torch.testing.assert_close(encoded[latent], dense[:, latent])
    best = dense.max(1)
    assert [firings.latents[0][0] for firings in encoded.top(1)] == best.indices.tolist()
    assert encoded.top(1)[3].latents[0][1] == pytest.approx(float(best.values[3]))
    assert sum(len(firings.latents) for firings in encoded) == int((dense > 0).sum())
    largest = dense[1:].amax(0)
    three = largest.topk(3).indices.tolist()
    assert encoded.strongest(3) == [(i, pytest.approx(float(largest[i]))) for i in three]
    frame = encoded.to_frame()
    assert list(frame.columns) == ["position", "token", "latent", "activation"]
    assert frame.activation.sum() == pytest.approx(float(dense.sum()), rel=1e-5)
    assert repr(encoded).splitlines()[1].startswith("             's'  ")


def test_what_cannot_be_encoded_is_named(gpt2, byte_tokenizer, sae):
    for text, told in (("", "got an empty one"), ("x" * 200, "within the model's .* positions")):
        with pytest.raises(ValueError, match=told):
            sl.encode_text(gpt2, byte_tokenizer, sae, text)
    encoded = sl.encode_text(gpt2, byte_tokenizer, sae, "sun")
    with pytest.raises(ValueError, match="from 0 to 47, got 48"):
        _ = encoded[48]
    with pytest.raises(ValueError, match="does not fit"):
        sl.encode_text(gpt2, byte_tokenizer, make_sae(d_model=16), "sun")
