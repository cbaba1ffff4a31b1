"""The output score of a latent is what adding its direction does to the tokens it promotes."""

import pytest
import torch

from saelens_lite.analyze.attribution.lens import logit_lens
from saelens_lite.analyze.index.output_score import output_scores

from ..conftest import make_sae


def test_the_score_by_hand(gpt2, byte_tokenizer, monkeypatch):
    """The last hook point: the stream behind the prompt, moved by 10 · 3 · W_dec, then the final norm and the
    head."""
    monkeypatch.setattr("saelens_lite.analyze.index.output_score._BATCH_LATENTS", 20)
    sae = make_sae(hook_point="blocks.1.hook_resid_post")
    lens = logit_lens(sae, gpt2, n=4)
    largest = torch.full((48,), 3.0)
    largest[7] = 0
    gpt2.train()
    scores = output_scores(sae, gpt2, byte_tokenizer, largest, lens.top_ids, "blocks.1.hook_resid_post")
    assert gpt2.training, "no dropout while measuring, and the model as it was after"
    gpt2.eval()
    assert torch.isnan(scores[7]) and scores.isnan().sum() == 1
    ids = byte_tokenizer("In my experience,", return_tensors="pt").input_ids
    stream = {}
    handle = gpt2.transformer.h[1].register_forward_hook(lambda _m, _a, out: stream.update(h=main(out)))
    with torch.no_grad():
        gpt2(input_ids=ids)
        handle.remove()

        def weighted(h, tokens):
            p = gpt2.lm_head(gpt2.transformer.ln_f(h)).softmax(-1)
            best = p[tokens].max()
            return float((1 - (p > best).sum() / 259) * best)

        for latent in (0, 30, 47):
            last, tokens = stream["h"][0, -1], lens.top_ids[latent]
            expected = weighted(last + 30 * sae.W_dec[latent], tokens) - weighted(last, tokens)
            assert float(scores[latent]) == pytest.approx(expected, abs=1e-5)
    assert scores[~scores.isnan()].mean() > 0, "the logit lens is not far off behind the last block"


def main(output):
    return output[0] if isinstance(output, tuple) else output


def test_a_prompt_without_tokens(gpt2, byte_tokenizer):
    with pytest.raises(ValueError, match="a prompt with tokens, got ''"):
        output_scores(
            make_sae(), gpt2,
            lambda text, return_tensors: byte_tokenizer("", return_tensors="pt", add_special_tokens=False),
            torch.ones(48), torch.zeros(48, 1), "blocks.0.hook_resid_post", prompt="",
        )  # fmt: skip
