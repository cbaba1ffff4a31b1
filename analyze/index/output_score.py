"""The output score of latents: whether firing hard makes the model say what the logit lens promises.

    score = after − before,   each (1 − rank / |V|) · p   of the likeliest of the latent's promoted tokens

p and rank (0 for the likeliest token of the vocabulary) are those of the next token behind a neutral prompt;
`after` has the latent's direction added at the prompt's last token, `factor` times its largest activation.
source: after Arad, Mueller and Belinkov 2025, arXiv:2505.20063. Latents with low scores steer poorly. Ours
adds at the last token only, and takes the strength from the latent's own largest activation in the index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.hooks import edit, run_to
from saelens_lite.sae.autoencoder import SparseAutoencoder

PROMPT = "In my experience,"
FACTOR = 10.0
_BATCH_LATENTS = 64


@torch.no_grad()
def output_scores(
    sae: SparseAutoencoder,
    model: nn.Module,
    tokenizer: Any,
    largest: Tensor,
    promoted_ids: Tensor,
    hook_point: str,
    *,
    prompt: str = PROMPT,
    factor: float = FACTOR,
) -> Tensor:
    """float32[d_sae]; nan for latents that never fired. One forward of the prompt for each latent.

    largest: float[d_sae], largest activation of each latent; 0: never fired
    hook_point: where the SAE writes
    promoted_ids: int[d_sae n], the top of the logit lens
    raises: ValueError for a prompt without tokens
    """
    decoder = Decoder(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(decoder.device)
    if ids.numel() == 0:
        raise ValueError(f"output_scores expected a prompt with tokens, got {prompt!r}")
    with evaluation_mode(model):
        scale = None
        if sae.config.target is None:  # a transcoder does not normalise, and reads elsewhere
            stream = run_to(model, [hook_point], input_ids=ids)[hook_point]
            _, scale, _ = sae.normalize(stream[:, -1].to(sae.device))
        unit = 1.0 if scale is None else float(scale)
        clean = model(input_ids=ids).logits[:, -1]
        scores = torch.full((sae.d_sae,), torch.nan)
        for latents in (largest > 0).nonzero().flatten().split(_BATCH_LATENTS):
            strength = factor * unit * largest[latents].to(sae.device, sae.dtype)
            added = strength[:, None] * sae.W_dec[latents.to(sae.device)]

            def push(acts: Tensor, _info: Any, added: Tensor = added) -> Tensor:
                acts = acts.clone()
                acts[:, -1] += added.to(acts.device, acts.dtype)
                return acts

            with edit(model, hook_point, push):
                logits = model(input_ids=ids.expand(len(latents), -1)).logits[:, -1]
            tokens = promoted_ids[latents].long().to(logits.device)
            scores[latents] = (_weighted(logits, tokens) - _weighted(clean.expand_as(logits), tokens)).cpu()
    return scores


def _weighted(logits: Tensor, tokens: Tensor) -> Tensor:
    """(1 − rank / |V|) · p of the likeliest of the tokens int64[B n]: float32[B]; logits: float[B |V|]."""
    probabilities = logits.float().softmax(-1)
    p = probabilities.gather(1, tokens).amax(1)
    rank = (probabilities > p[:, None]).sum(1)
    return (1 - rank / logits.shape[-1]) * p
