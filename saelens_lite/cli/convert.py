"""`saelens-lite convert`: an SAE of any format that opens here, written in one that another program opens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from saelens_lite.cli.flags import configured
from saelens_lite.config import check_fields
from saelens_lite.errors import nearest


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """Write an SAE or a transcoder in another format, exactly; what it cannot hold is refused by name.

    circuit-tracer takes transcoders of every layer: the source is a folder that has their folders in it.
    """

    source: str
    """The SAE: a folder or file, a release and id such as gpt2-small-res-jb/blocks.8.hook_resid_pre, or a
    repository."""

    output: str
    """The new folder."""

    to: str
    """saelens (also ours), sparsify, dictionary_learning or circuit-tracer."""

    folder: str | None = None
    """The SAE's folder or file inside the source, or its id in a release."""

    format: str | None = None
    """The source's format, where its files are not recognised by themselves."""

    dtype: str | None = None
    """Type of the weights written, such as float32; None keeps the source's."""

    def __post_init__(self) -> None:
        check_fields(self)
        from saelens_lite.formats.convert import TARGETS

        if self.to not in TARGETS:
            hint = nearest(self.to, TARGETS)
            raise ValueError(f"convert --to expected one of {', '.join(TARGETS)}, got {self.to!r}{hint}")


def run(argv: Sequence[str]) -> None:
    """An SAE of one format into another"""
    config = configured(ConvertConfig, "convert", argv)
    from saelens_lite.formats import circuit_tracer, saelens
    from saelens_lite.sae.any_kind import load_any

    output = Path(config.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} expected a new or empty folder, got one with files; choose another")
    if config.to == circuit_tracer.TARGET:
        _write_set(config, output)
        return
    sae = load_any(config.source, config.folder, config.dtype, config.format)
    if config.to == saelens.NAME:
        sae.save(output)
    else:
        sae.export(output, config.to)
    files = ", ".join(sorted(file.name for file in output.iterdir()))
    print(f"{output}: {sae.kind}, d_model {sae.d_model}, {sae.d_sae:,} latents, as {config.to} ({files})")


def _write_set(config: ConvertConfig, output: Path) -> None:
    """circuit-tracer's folder of the transcoders below the source."""
    from saelens_lite.formats import circuit_tracer
    from saelens_lite.sae.source import folders_inside
    from saelens_lite.sae.transcoder import Transcoder

    source = Path(config.source, config.folder or "")
    names = folders_inside(source, most=1000) if source.is_dir() else []
    if not names:
        raise ValueError(
            f"convert --to {config.to} expected a folder with the folders of transcoders in it, one for each "
            f"layer, got {source}"
        )
    transcoders = [Transcoder.load(source / name, dtype=config.dtype, format=config.format) for name in names]
    circuit_tracer.write([(one.config, one.state_dict()) for one in transcoders], output)
    first = transcoders[0]
    print(
        f"{output}: {len(transcoders)} transcoders, {first.kind}, d_model {first.d_model}, {first.d_sae:,} "
        f"latents each, as {config.to} (config.yaml, layer_0.safetensors …)"
    )
