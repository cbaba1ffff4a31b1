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
    """Write an SAE in another format, exactly; what that format cannot hold is refused by name."""

    source: str
    """The SAE: a folder or file, a release and id such as gpt2-small-res-jb/blocks.8.hook_resid_pre, or a
    repository."""

    output: str
    """The new folder."""

    to: str
    """saelens (also ours), sparsify or dictionary_learning."""

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
    config = configured(ConvertConfig, "convert", argv, leading=("source", "output"))
    from saelens_lite.formats import saelens
    from saelens_lite.sae.any_kind import load_any

    output = Path(config.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} expected a new or empty folder, got one with files; choose another")
    sae = load_any(config.source, config.folder, config.dtype, config.format)
    if config.to == saelens.NAME:
        sae.save(output)
    else:
        sae.export(output, config.to)
    files = ", ".join(sorted(file.name for file in output.iterdir()))
    print(f"{output}: {sae.kind}, d_model {sae.d_model}, {sae.d_sae:,} latents, as {config.to} ({files})")
