"""Edits of latents in a running model: ablate, clamp, scale, steer, or the reconstruction alone. They are
context managers, for `generate` and plain forwards.

    stream ← stream + (z_new − z) · W_dec

with z the latents of the stream as it is. A transcoder's are those at its input, and its edit is added where
it writes, to what the MLP adds. The SAE's error is never recomputed: what the SAE does not explain
stays, and a row where z_new = z keeps every bit. Where the SAE normalises its inputs at run time, the edit is
multiplied by the row's scale. The latents of one call are edited at once; nested contexts act in the order
they were entered, each on the stream that the one before left, at one hook point or at several: `with
ablate(…, sae_3, …), steer(…, sae_5, …):`. One call acts at several places with `hook_point=[…]`.

Positions. `where` is "all", "prompt", "generated", a bool mask [batch width] over the columns of the input
(`span_mask` makes one of the tokens of an entity), or a function of EditInfo that returns bool[batch seq].
Padding is never edited. The three words leave out the model's BOS, EOS and padding tokens as well, which
skip_ids=() undoes. "Generated" begins at the first token that `generate` adds; a forward outside `generate`
is all prompt, unless prompt_tokens says where its prompt ends. A left-padded forward outside `generate` needs
position_ids (see position_ids_from) to mean what the unpadded one means, edited or not. `when=Fires(latent,
above)` edits only the tokens where another latent is above a value, one of the same SAE or, with `sae=`, of
one that reads an earlier hook point.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Unpack

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.errors import nearest
from saelens_lite.hashing import hashed_uniform
from saelens_lite.lm.decoder import Model
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.positions import Where
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from .stream_edit import (
    LatentPlace,
    Latents,
    PerLatent,
    Place,
    Unit,
    amounts_for,
    checked_latents_of,
    edited,
    edited_latents,
    in_latent_units,
    latent_acts_of,
    of_latents,
)

BOUNDS = ("both", "min", "max")


@takes_folders
@contextmanager
@names_misfits
def ablate(
    model: Model,
    sae: SparseAutoencoder,
    latents: Latents,
    *,
    where: Where = "all",
    value: Literal["zero", "mean", "resample"] = "zero",
    mean: Tensor | None = None,
    reference: Tensor | None = None,
    seed: int = 0,
    **place: Unpack[LatentPlace],
) -> Iterator[None]:
    """Latents set to zero, to their mean, or to what they are on other tokens.

    where, place: as for `steer`
    mean: float[d_sae], as `latent_stats` gives, or one a latent; for value="mean"
    reference: float[n_tokens d_model], activations of other tokens, such as rows of a store; for
        value="resample". Every edited token takes the values of all the latents from one of them, drawn by a
        hash of the seed, the token and its index in the text: the same in any batch, with a cache or without
    raises: ValueError for arguments that do not fit each other, the SAE or the model; HookError as
        `hooks.edit`
    source: of resampling, Chan et al. 2022, "Causal Scrubbing"
    """
    needed = {"zero": None, "mean": "mean", "resample": "reference"}
    if value not in needed:
        raise ValueError(
            f"value expected 'zero', 'mean' or 'resample', got {value!r}; `clamp` sets another value"
        )
    for name, given in (("mean", mean), ("reference", reference)):
        if needed[value] == name and given is None:
            source = "latent_stats(sae, batches).mean" if name == "mean" else "store.acts(0)"
            raise ValueError(f"value={value!r} expected {name}=, such as {source}, got None")
        if needed[value] != name and given is not None:
            owner = "mean" if name == "mean" else "resample"
            raise ValueError(f"{name}= belongs to value={owner!r}, got it with value={value!r}")
    chosen = checked_latents_of(sae, latents)
    if reference is not None:
        pool = _reference_acts(sae, chosen, reference)

        def difference(z: Tensor, acts: Tensor, info: EditInfo) -> Tensor:
            return pool[_drawn(info, len(pool), seed).to(pool.device)].to(z) - z

    else:
        target = torch.zeros(len(chosen)) if mean is None else of_latents(mean, chosen, sae, "mean")

        def difference(z: Tensor, acts: Tensor, info: EditInfo) -> Tensor:
            return target.to(z) - z

    with edited_latents(model, sae, chosen, difference, where, **place):
        yield


@takes_folders
@contextmanager
@names_misfits
def clamp(
    model: Model,
    sae: SparseAutoencoder,
    latents: Latents,
    value: PerLatent,
    *,
    where: Where = "all",
    unit: Unit = "raw",
    max_act: PerLatent | None = None,
    bound: Literal["both", "min", "max"] = "both",
    **place: Unpack[LatentPlace],
) -> Iterator[None]:
    """Latents held at a value, whatever the text.

    where, place: as for `steer`
    value: one number, or one a latent, in units as for `steer`; raw is the SAE's own scale
    bound: "min" raises what is below the value and leaves the rest, "max" lowers what is above it
    raises: as `ablate`
    source: Templeton et al. 2024, "Scaling Monosemanticity", which adds the SAE's error back after
        reconstructing; "min" as in Wu et al. 2025, AxBench, arXiv:2501.17148
    """
    if bound not in BOUNDS:
        raise ValueError(f"bound expected one of {BOUNDS}, got {bound!r}{nearest(str(bound), BOUNDS)}")
    chosen = checked_latents_of(sae, latents)
    target = in_latent_units(sae, chosen, amounts_for(value, chosen, "value"), unit, max_act)

    def difference(z: Tensor, acts: Tensor, info: EditInfo) -> Tensor:
        missing = target(acts) - z
        return {"both": missing, "min": missing.clamp_min(0), "max": missing.clamp_max(0)}[bound]

    with edited_latents(model, sae, chosen, difference, where, **place):
        yield


@takes_folders
@contextmanager
@names_misfits
def scale(
    model: Model,
    sae: SparseAutoencoder,
    latents: Latents,
    factor: PerLatent,
    *,
    where: Where = "all",
    **place: Unpack[LatentPlace],
) -> Iterator[None]:
    """Latents multiplied by a factor where they fire: 1 changes no bit, 0 is `ablate`.

    where, place: as for `steer`
    factor: one number, or one a latent
    raises: as `ablate`
    """
    chosen = checked_latents_of(sae, latents)
    factors = amounts_for(factor, chosen, "factor")
    with edited_latents(model, sae, chosen, lambda z, acts, info: factors.to(z) * z - z, where, **place):
        yield


@takes_folders
@contextmanager
@names_misfits
def steer(
    model: Model,
    sae: SparseAutoencoder,
    latents: Latents,
    strength: PerLatent,
    *,
    where: Where = "all",
    unit: Unit = "raw",
    max_act: PerLatent | None = None,
    **place: Unpack[LatentPlace],
) -> Iterator[None]:
    """The latents' directions added to the stream, whether they fire or not; those of several latents add up.

    where: tokens that are edited: "all", "prompt", "generated", bool[batch width] (sl.lm.span_mask makes it),
        or a function of EditInfo that gives bool[batch seq]
    place: hook_point="blocks.3.hook_resid_post", a module path, or several of them, by default where the SAE
        was trained; when=sl.edits.Fires(7, 0.5), only on tokens where latent 7 is above 0.5; skip_ids, token
        ids that the words of `where` leave out, by default BOS, EOS and padding; prompt_tokens, real tokens
        of each prompt in forwards outside `generate`; directions, along what the change is written
    strength: one number, or one a latent, in units of
        "raw": the latent's activation: 1 adds W_dec[i], times the row's scale where the SAE normalises
        "max_act": its largest activation, from max_act: float[d_sae] as `latent_stats` gives, or one a latent
        "resid_norm": the row's own norm: 1 adds a vector along W_dec[i] as long as the row is
    raises: as `ablate`
    """
    chosen = checked_latents_of(sae, latents)
    added = in_latent_units(sae, chosen, amounts_for(strength, chosen, "strength"), unit, max_act)

    def difference(z: Tensor, acts: Tensor, info: EditInfo) -> Tensor:
        return added(acts).expand_as(z)

    with edited_latents(model, sae, chosen, difference, where, reads_latents=False, **place):
        yield


@takes_folders
@contextmanager
@names_misfits
def replace_with_reconstruction(
    model: Model, sae: SparseAutoencoder, *, where: Where = "all", **place: Unpack[Place]
) -> Iterator[None]:
    """The SAE's reconstruction in place of the activations: only what the SAE explains is left of the stream.

    This is the one edit that drops the SAE's error. What it does to the model is the damage of reconstruction
    alone, to compare other edits with.
    raises: as `ablate`
    """

    def change(acts: Tensor, info: EditInfo, read: Tensor) -> Tensor:
        recons = sae(read.to(sae.device)).recons.to(acts.device)
        wider = torch.promote_types(acts.dtype, recons.dtype)
        return recons.to(wider) - acts.to(wider)

    with edited(model, change, where, sae=sae, **place):
        yield


def _reference_acts(sae: SparseAutoencoder, chosen: Tensor, reference: Tensor) -> Tensor:
    """float[n_tokens n_latents] of the tokens that `ablate` draws from."""
    if reference.ndim != 2 or not len(reference):
        raise ValueError(
            f"reference expected float[n_tokens d_model={sae.d_model}], got {list(reference.shape)}"
        )
    if not reference.isfinite().all():
        raise ValueError("reference expected finite activations, got nan or infinity: leave those tokens out")
    with torch.no_grad():
        return latent_acts_of(sae, reference.to(sae.device, sae.dtype), chosen.to(sae.device))


def _drawn(info: EditInfo, n: int, seed: int) -> Tensor:
    """int64[batch seq] below n, by a hash of the seed, the token's index in the text, and its id if known."""
    keys = info.token_index.cpu() << 32
    if info.input_ids is not None:
        keys = keys + info.input_ids.cpu()
    return torch.from_numpy((hashed_uniform(keys.numpy(), seed) * n).astype("int64"))
