"""What a model writes after a prompt: as it is, under edits, and under the same edit of a random latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.token_text import token_strings
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.text_table import Lines, Tabular

from ..latents.text_latents import text_ids
from .controls import Controls, matched_latents
from .stream_edit import Latents, checked_latents_of

CLEAN = "before"


@dataclass(frozen=True, slots=True)
class Continuation:
    """One way to go on.

    text: written after the prompt, greedily
    next_tokens: (token, probability) of the likeliest first tokens, the likeliest first
    kl: KL(p_clean ‖ p) of the first token, nats; 0 for the model as it is
    """

    text: str
    next_tokens: tuple[tuple[str, float], ...]
    kl: float


@dataclass(frozen=True, slots=True)
class Continuations(Tabular):
    """What `continuations` found; `print(found)`. by_name: in order, the model as it is first"""

    prompt: str
    by_name: Mapping[str, Continuation]
    _left = 9

    def __getitem__(self, name: str) -> Continuation:
        return self.by_name[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"prompt": self.prompt, "rows": [{"name": n} | asdict(of) for n, of in self.by_name.items()]}

    def _tables(self) -> list[tuple[str, Lines]]:
        columns = [
            [f"{share:6.1%}  {token!r}" for token, share in of.next_tokens] for of in self.by_name.values()
        ]
        return [("next token", [list(self.by_name), *map(list, zip(*columns, strict=True))])]

    def _notes(self) -> list[str]:
        moved = [f"{of.kl:.3f} nats ({name})" for name, of in self.by_name.items() if name != CLEAN]
        texts = [f"{name}:\n  {self.prompt!r} → {of.text!r}" for name, of in self.by_name.items()]
        return [*([f"KL from before: {', '.join(moved)}"] if moved else []), "", *texts]

    __str__ = Tabular.table


@names_misfits
def continuations(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    edits: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    *,
    max_new_tokens: int = 20,
    n_next: int = 5,
) -> Continuations:
    """Continue a prompt as the model is, and under each edit.

        edit = partial(sl.clamp, model, sae, 12, 3.0)
        print(sl.edits.continuations(model, tokenizer, "Once upon", {"latent 12 at 3": edit}))

    prompt: read as a harvest reads a text, after one BOS where the tokenizer has one
    edits: contexts by name, each entered for one generation
    max_new_tokens: written greedily; n_next: likeliest next tokens to show
    raises: ValueError for an empty prompt
    """
    if not prompt:
        raise ValueError("expected a prompt, got an empty one")
    decoder = Decoder(model)
    ids = torch.tensor([text_ids(tokenizer, prompt)], device=decoder.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    how = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": pad}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    found: dict[str, Continuation] = {}
    clean: Tensor | None = None
    with evaluation_mode(decoder), torch.no_grad():
        for name, edit in {CLEAN: nullcontext, **edits}.items():
            with edit():
                out = decoder.given.generate(ids, attention_mask=torch.ones_like(ids), **how)
            log_probs = out.logits[0][0].float().log_softmax(-1).cpu()
            clean = log_probs if clean is None else clean
            top = log_probs.exp().topk(n_next)
            tokens = [token_strings(tokenizer, [i])[0] for i in top.indices.tolist()]
            found[name] = Continuation(
                text=tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True),
                next_tokens=tuple(zip(tokens, top.values.tolist(), strict=True)),
                kl=float((clean.exp() * (clean - log_probs)).nan_to_num(0.0).sum()),
            )
    return Continuations(prompt, found)


@names_misfits
def one_control(
    sae: SparseAutoencoder, latents: Latents, rates: Tensor | None, *, seed: int = 0
) -> Controls | None:
    """One matched random latent for each of these, for `directions=` of an edit; None where there is none.

    rates: float[d_sae], the share of tokens on which each latent fires; None, or one that never fires among
        the latents: matched by the norm of the decoder row alone
    """
    chosen = checked_latents_of(sae, latents)
    if rates is None or not (rates[chosen] > 0).all():
        rates = torch.ones(sae.d_sae)
    norms = sae.W_dec.detach().norm(dim=1).cpu()
    eligible = (rates > 0) & (norms > 0)
    eligible[chosen] = False
    if (most := int(eligible.sum())) <= len(chosen):
        return None
    drawn = matched_latents(sae, chosen, rates, n_draws=min(100, most) if len(chosen) == 1 else 1, seed=seed)
    one = int(torch.randint(len(drawn), (1,), generator=torch.Generator().manual_seed(index(seed))))
    assert drawn.latents is not None, "these controls are latents'"
    picked = slice(one, one + 1)
    return Controls(drawn.name, drawn.directions[picked], drawn.latents[picked], drawn.rate_ratio)
