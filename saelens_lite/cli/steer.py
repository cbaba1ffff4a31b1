"""`saelens-lite steer`: what a model writes with latents edited, beside what it writes anyway."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_and_tokenizer
from saelens_lite.config import AtLeast
from saelens_lite.text_table import in_format

if TYPE_CHECKING:
    from torch import Tensor

    from saelens_lite.sae.autoencoder import SparseAutoencoder


def run(argv: Sequence[str]) -> None:
    """Latents edited while a model writes, beside what it writes anyway and a matched random latent"""
    config = configured(SteerConfig, "steer", argv)
    from saelens_lite.analyze.edits.continued_text import continuations, one_control
    from saelens_lite.analyze.latents.compatibility import fits
    from saelens_lite.sae.any_kind import load_reader

    latents, amounts = asked(config.latent, config.mode)
    device = device_named(config.device)
    sae = load_reader(config.sae, device=device)
    model, tokenizer = model_and_tokenizer(config.model, device)
    fits(sae, model, config.hook_point)
    rates = _rates(config, sae)
    edit = partial(_edit(config.mode, config.unit), model, sae, latents, *([amounts] if amounts else []))
    edit = partial(edit, where=config.where, hook_point=config.hook_point)
    edits: dict[str, Callable[..., Any]] = {_said(config.mode, latents, amounts): edit}
    control = one_control(sae, latents, rates, seed=config.seed)
    if control is not None:
        drawn = ", ".join(map(str, control.latents[0].tolist()))
        edits[f"random latent{'s' * (len(latents) > 1)} {drawn}"] = partial(
            edit, directions=control.directions[0]
        )
    results = [
        continuations(model, tokenizer, prompt, edits, max_new_tokens=config.max_new_tokens)
        for prompt in config.prompt
    ]
    print("\n\n".join(in_format(result, config.format) for result in results))
    if config.format != "table":
        return
    if control is None:
        print("no control: no other latent fires")
    else:
        by = "how often it fires and " if rates is not None and (rates[latents] > 0).all() else ""
        print(
            f"the random latent is matched by {by}its decoder's norm: the same change is written along its "
            "direction. One draw shows nothing; sl.edits.dose_response takes many"
        )


def asked(given: Sequence[str], mode: str) -> tuple[list[int], list[float]]:
    """Latents and amounts from words such as 12=3; no amounts with mode ablate.

    raises: ValueError for a word of another form
    """
    form = r"(\d+)" if mode == "ablate" else r"(\d+)=([-+\d.eE]+)"
    latents, amounts = [], []
    for word in given:
        found = re.fullmatch(form, word)
        try:
            amounts += [float(found[2])] if found and mode != "ablate" else []
        except ValueError:
            found = None
        if found is None:
            wanted = "a latent, such as 12," if mode == "ablate" else "a latent and its amount, such as 12=3,"
            raise ValueError(f"--latent expected {wanted} with --mode {mode}, got {word!r}")
        latents.append(int(found[1]))
    return latents, amounts


def _edit(mode: str, unit: str) -> Callable[..., Any]:
    from saelens_lite.analyze.edits.latents import ablate, clamp, scale, steer

    if mode in ("scale", "ablate") and unit != "raw":
        raise ValueError(f"--unit {unit} goes with --mode clamp or add, got --mode {mode}")
    return {
        "clamp": partial(clamp, unit=unit),
        "add": partial(steer, unit=unit),
        "scale": scale,
        "ablate": ablate,
    }[mode]


def _said(mode: str, latents: Sequence[int], amounts: Sequence[float]) -> str:
    what = {"clamp": "at {:g}", "add": "plus {:g}", "scale": "times {:g}"}.get(mode)
    if what is None:
        return f"latent {', '.join(map(str, latents))} ablated"
    return ", ".join(f"latent {of} {what.format(by)}" for of, by in zip(latents, amounts, strict=True))


def _rates(config: SteerConfig, sae: SparseAutoencoder) -> Tensor | None:
    """How often each latent fires: in the store where one is given, else as the SAE's folder records."""
    from saelens_lite.analyze.latents.density import latent_density
    from saelens_lite.sae.folder import load_log_sparsity

    if config.store is not None:
        return latent_density(sae, config.store, config.hook_point).density.cpu()
    recorded = load_log_sparsity(config.sae) if Path(config.sae).is_dir() else None
    return None if recorded is None else (10 ** recorded.double() - 1e-10).clamp_min(0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SteerConfig:
    """Edit latents while a model continues a prompt, and print the clean and the edited continuation with the
    likeliest next tokens, beside the same edit of a matched random latent."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    model: str
    """The model that it was trained on, a hub id or a folder; "demo" is the embedded one."""

    prompt: tuple[str, ...]
    """Texts to continue, each by itself."""

    latent: tuple[str, ...]
    """Latents and amounts, such as 12=3 40=0.5; with --mode ablate latents alone."""

    mode: Literal["clamp", "add", "scale", "ablate"] = "clamp"
    """clamp sets the activation, add adds to the stream whatever the latent does, scale multiplies the
    activation, ablate sets it to 0."""

    where: Literal["all", "prompt", "generated"] = "all"
    """Tokens that are edited."""

    unit: Literal["raw", "resid_norm"] = "raw"
    """Of amounts of clamp and add: activations, or lengths of the stream."""

    max_new_tokens: Annotated[int, AtLeast(1)] = 20
    """Tokens to write, the likeliest each time."""

    hook_point: str | None = None
    """Where to edit; None takes the place that the SAE was trained on."""

    store: str | None = None
    """An activation store, for how often latents fire; None takes what the SAE's folder records."""

    seed: int = 0
    """Of the draw of the random latent."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How the result is printed; all but table print nothing else."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""
