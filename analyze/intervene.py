"""Edits of latents in a running model: ablate, clamp, scale, steer. Context managers, for `generate` and for forwards.

    stream ← stream + (z_new − z) · W_dec

with z the latents of the stream as it is. The SAE's error is never recomputed: what the SAE does not explain stays,
and a row where z_new = z keeps every bit. Where the SAE normalises its inputs at run time, the edit is multiplied by
the row's scale. The latents of one call are edited at once; nested contexts act in the order they were entered, each
on the stream that the one before left.

Positions. `where` is "all", "prompt", "generated", a bool mask [batch width] over the columns of the input, or a
function of EditInfo that returns bool[batch seq]. Padding is never edited. The three words leave out the model's BOS,
EOS and padding tokens as well, which skip_ids=() undoes. "Generated" begins at the first token that `generate` adds;
a forward outside `generate` is all prompt, unless prompt_tokens says where its prompt ends. A left-padded forward
outside `generate` needs position_ids (see position_ids_from) to mean what the unpadded one means, edited or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from saelens_lite.errors import nearest
from saelens_lite.hooks import EditInfo, d_model, edit, resolve
from saelens_lite.positions import Positions, Where, special_ids
from saelens_lite.sae import SparseAutoencoder

Latents = int | Sequence[int] | Tensor
PerLatent = float | Sequence[float] | Tensor
UNITS = ("raw", "max_act", "resid_norm")


class Place(TypedDict, total=False):
    """Where in the model and in the text an edit acts, besides `where`."""

    hook_point: str | None
    """by default where the SAE was trained"""
    skip_ids: Sequence[int] | None
    """token ids that "all", "prompt" and "generated" leave out; by default the model's BOS, EOS and padding"""
    prompt_tokens: int | Sequence[int] | Tensor | None
    """real tokens of each example's prompt (one number, or one an example) in forwards outside `generate`"""


@contextmanager
def ablate(
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Latents,
    where: Where = "all",
    value: Literal["zero", "mean"] = "zero",
    mean: Tensor | None = None,
    **place: Unpack[Place],
) -> Iterator[None]:
    """Latents set to zero, or to their mean.

    mean: float[d_sae], as `latent_stats` gives, or one a latent; for value="mean"
    raises: ValueError for arguments that do not fit each other, the SAE or the model; HookError as `hooks.edit`
    """
    if value not in ("zero", "mean"):
        raise ValueError(f"value expected 'zero' or 'mean', got {value!r}; `clamp` sets another value")
    if value == "mean" and mean is None:
        raise ValueError("value='mean' expected mean=, got None; latent_stats(sae, batches).mean gives it")
    if value == "zero" and mean is not None:
        raise ValueError("mean= belongs to value='mean', got it with value='zero'")
    chosen = _checked(sae, latents)
    target = _of_latents(mean, chosen, sae, "mean") if value == "mean" else torch.zeros(len(chosen))
    with _edited(model, sae, _change_latents(sae, chosen, lambda z: target.to(z) - z), where, **place):
        yield


@contextmanager
def clamp(
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Latents,
    value: PerLatent,
    where: Where = "all",
    **place: Unpack[Place],
) -> Iterator[None]:
    """Latents held at a value, in the SAE's own scale, whatever the text.

    value: one number, or one a latent
    raises: as `ablate`
    source: Templeton et al. 2024, "Scaling Monosemanticity", which adds the SAE's error back after reconstructing
    """
    chosen = _checked(sae, latents)
    target = _amounts(value, chosen, "value")
    with _edited(model, sae, _change_latents(sae, chosen, lambda z: target.to(z) - z), where, **place):
        yield


@contextmanager
def scale(
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Latents,
    factor: PerLatent,
    where: Where = "all",
    **place: Unpack[Place],
) -> Iterator[None]:
    """Latents multiplied by a factor where they fire: 1 changes no bit, 0 is `ablate`.

    factor: one number, or one a latent
    raises: as `ablate`
    """
    chosen = _checked(sae, latents)
    factors = _amounts(factor, chosen, "factor")
    with _edited(model, sae, _change_latents(sae, chosen, lambda z: factors.to(z) * z - z), where, **place):
        yield


@contextmanager
def steer(
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Latents,
    strength: PerLatent,
    unit: Literal["raw", "max_act", "resid_norm"] = "raw",
    where: Where = "all",
    max_act: PerLatent | None = None,
    **place: Unpack[Place],
) -> Iterator[None]:
    """The latents' directions added to the stream, whether they fire or not; those of several latents add up.

    strength: one number, or one a latent, in units of
        "raw": the latent's activation: 1 adds W_dec[i], times the row's scale where the SAE normalises
        "max_act": its largest activation, from max_act: float[d_sae] as `latent_stats` gives, or one a latent
        "resid_norm": the row's own norm: 1 adds a vector along W_dec[i] as long as the row is
    raises: as `ablate`
    """
    if unit not in UNITS:
        raise ValueError(f"unit expected one of {UNITS}, got {unit!r}{nearest(str(unit), UNITS)}")
    if (unit == "max_act") != (max_act is not None):
        raise ValueError(
            f"max_act= belongs to unit='max_act' and only to it, got unit={unit!r} with{'out' if max_act is None else ''} "
            "max_act=; latent_stats(sae, batches).max gives it"
        )
    chosen = _checked(sae, latents)
    amounts = _amounts(strength, chosen, "strength")
    if max_act is not None:
        amounts = amounts * _of_latents(max_act, chosen, sae, "max_act")

    def change(acts: Tensor) -> Tensor:
        directions = sae.W_dec[chosen.to(sae.device)]
        if unit == "resid_norm":
            directions = nn.functional.normalize(directions, dim=-1)
            row_scale: Tensor | None = acts.norm(dim=-1, keepdim=True)
        else:
            row_scale = sae.normalize(acts)[1]
        vector = amounts.to(directions) @ directions
        return vector.expand_as(acts) if row_scale is None else vector * row_scale

    with _edited(model, sae, change, where, **place):
        yield


class LatentStats(NamedTuple):
    """What `ablate` to the mean and `steer` in units of the maximum are measured in."""

    mean: Tensor
    """float32[d_sae], over all tokens, silent ones included"""
    max: Tensor
    """float32[d_sae], 0 for a latent that never fired"""
    n_tokens: int


def latent_stats(sae: SparseAutoencoder, batches: Iterable[Tensor]) -> LatentStats:
    """Mean and largest activation of every latent over batches of activations, float[... d_model] each.

    For a store: `latent_stats(sae, (store.acts(shard) for shard in range(store.n_shards)))`.
    raises: ValueError when there are no tokens
    """
    total = torch.zeros(sae.d_sae, dtype=torch.float64)  # on the CPU: mps has no float64
    largest = torch.zeros(sae.d_sae, dtype=torch.float32, device=sae.device)
    n_tokens = 0
    with torch.no_grad():
        for acts in batches:
            latents = sae.encode(acts.to(sae.device))
            total.index_add_(0, latents.indices.cpu(), latents.values.cpu().double())
            largest.scatter_reduce_(0, latents.indices, latents.values.float(), "amax")
            n_tokens += latents.batch
    if not n_tokens:
        raise ValueError("latent_stats expected activations, got no tokens")
    return LatentStats((total / n_tokens).float().to(sae.device), largest, n_tokens)


@contextmanager
def _edited(
    model: nn.Module,
    sae: SparseAutoencoder,
    change: Callable[[Tensor], Tensor],
    where: Where,
    *,
    hook_point: str | None = None,
    skip_ids: Sequence[int] | None = None,
    prompt_tokens: int | Sequence[int] | Tensor | None = None,
) -> Iterator[None]:
    """Add change(acts) at the chosen positions; acts float[batch seq d_model] in the SAE's dtype, on its device."""
    name = hook_point or sae.config.hook_point or sae.config.hf_module
    if not name:
        raise ValueError("an edit expected hook_point=, since the SAE does not say where it was trained")
    if resolve(model, name).kind != "module" and d_model(model) != sae.d_model:
        raise ValueError(
            f"an edit at {name} expected an SAE of d_model={d_model(model)}, got one of {sae.d_model}, trained on "
            f"{sae.config.model_name or 'an unnamed model'} {sae.config.hook_point}"
        )
    skipped = special_ids(model) if skip_ids is None else tuple(skip_ids)
    positions = Positions(where=where, skip_ids=skipped, prompt_tokens=prompt_tokens)

    def edited(acts: Tensor, info: EditInfo) -> Tensor:
        wide = acts.to(sae.device, sae.dtype)
        delta = change(wide)
        # where delta is 0 the stream is kept and not added to: −0.0 + 0.0 would lose its sign
        touched = positions(info)[..., None].to(sae.device) & (delta != 0)
        wider = torch.promote_types(acts.dtype, delta.dtype)  # an SAE of fewer bits must not round the stream
        moved = (acts.to(wider) + delta.to(acts.device, wider)).to(acts.dtype)
        return torch.where(touched.to(acts.device), moved, acts)

    with edit(model, name, edited):
        yield


def _change_latents(
    sae: SparseAutoencoder, chosen: Tensor, difference: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """acts → (z_new − z) · W_dec in the scale of acts, where difference(z) = z_new − z; z is float[... n latents]."""

    def change(acts: Tensor) -> Tensor:
        latents = chosen.to(sae.device)
        delta = difference(_latent_acts(sae, acts, latents)) @ sae.W_dec[latents]
        row_scale = sae.normalize(acts)[1]
        return delta if row_scale is None else delta * row_scale

    return change


def _latent_acts(sae: SparseAutoencoder, acts: Tensor, latents: Tensor) -> Tensor:
    """float[... n]: activations of these latents alone; only TopK has to compute the others, to select among them."""
    if sae.kind != "topk":
        return sae.latent_acts(sae.normalize(acts)[0], latents)
    encoded, n = sae.encode(acts), len(latents)
    column = torch.full((sae.d_sae,), n, device=latents.device)  # the others share a column that is cut off again
    column[latents] = torch.arange(n, device=latents.device)
    found = encoded.values.new_zeros(encoded.batch, n + 1)
    found = found.index_put((encoded.row_ids(), column[encoded.indices]), encoded.values, accumulate=True)
    return found[:, :n].view(*acts.shape[:-1], n)


def _checked(sae: SparseAutoencoder, latents: Latents) -> Tensor:
    """int64[n], each once and within the SAE."""
    chosen = torch.as_tensor(latents, dtype=torch.int64).reshape(-1)
    if not len(chosen):
        raise ValueError("latents expected at least one index, got none")
    if chosen.min() < 0 or chosen.max() >= sae.d_sae:
        raise ValueError(f"latents expected indices from 0 to {sae.d_sae - 1}, got {chosen.tolist()[:8]}")
    if len(chosen.unique()) != len(chosen):
        raise ValueError(f"latents expected each index once, got {chosen.tolist()[:8]}")
    return chosen


def _amounts(value: PerLatent, chosen: Tensor, name: str) -> Tensor:
    """float[n] on the CPU, from one number or one a latent."""
    amounts = torch.as_tensor(value).cpu()
    amounts = amounts if amounts.is_floating_point() else amounts.float()
    if amounts.numel() != 1 and amounts.shape != chosen.shape:
        raise ValueError(f"{name} expected one number or one for each of {len(chosen)} latents, got {list(amounts.shape)}")
    return amounts.reshape(-1).expand(len(chosen))


def _of_latents(values: PerLatent | None, chosen: Tensor, sae: SparseAutoencoder, name: str) -> Tensor:
    """float[n] from values of all d_sae latents, or as `_amounts`."""
    if isinstance(values, Tensor) and values.shape == (sae.d_sae,):
        return values.cpu()[chosen]
    assert values is not None, "the callers have checked"
    return _amounts(values, chosen, name)
