"""`saelens-lite evaluate`: an SAE's scores beside their controls."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from saelens_lite.atomic import check_output, write_file
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_for, model_of, print_next, with_short_names
from saelens_lite.config import AtLeast, Below
from saelens_lite.text_table import in_format


def run(argv: Sequence[str]) -> None:
    """fvu, l0, dead latents and the cost in cross-entropy, with their controls"""
    config = configured(EvaluateConfig, "evaluate", argv)
    from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
    from saelens_lite.analyze.evaluation.family import compare_autoencoders
    from saelens_lite.analyze.evaluation.side_by_side import evaluate_saes
    from saelens_lite.autoencoders.autoencoder import Autoencoder
    from saelens_lite.autoencoders.folder import FILE
    from saelens_lite.sae.any_kind import load_reader
    from saelens_lite.store.reader import ActivationStore

    if config.output is not None:
        check_output(config.output)
    store, device = ActivationStore(config.store), device_named(config.device)
    named = named_saes(config.sae)
    relatives = [name for name, path in named.items() if Path(path, FILE).exists()]
    if relatives and (config.baseline or config.seeds or config.all):
        raise ValueError(
            f"--baseline, --seeds and --all go with one SAE, {relatives[0]} is a relative: name an SAE "
            "with a frozen decoder beside them in --sae"
        )
    if len(named) > 1 and (config.baseline or config.seeds or config.all):
        raise ValueError(
            "--baseline, --seeds and --all go with one --sae; beside several, the baseline of each is its "
            "own folder frozen/, taken where it is there"
        )
    model = model_for(config.model, device, store)
    how = {name: getattr(config, name) for name in OF_ROWS}
    opened: dict[str, Any] = {
        name: (Autoencoder.load if name in relatives else load_reader)(path, device=device)
        for name, path in named.items()
    }
    if relatives:
        del how["windows_tokens"]
        result: Any = compare_autoencoders(opened, store, model, **how)
        text = result.table()
    elif len(named) == 1:
        [sae] = opened.values()
        seeds = [load_reader(path, device=device) for path in config.seeds]
        baseline = load_reader(config.baseline, device=device) if config.baseline else None
        result = evaluate_sae(sae, store, model, baseline, seeds, **how)
        text = result.table(config.all)
    else:
        frozen = {name: Path(path, "frozen") for name, path in named.items()}
        baselines = {
            name: load_reader(path, device=device)
            for name, path in frozen.items()
            if (path / "cfg.json").exists()
        }
        result = evaluate_saes(opened, store, model, baselines, **how)
        text = result.table()
    if config.output is not None:
        write_file(config.output, json.dumps(result.to_dict(), indent=1) + "\n")
    if config.format != "table":
        print(with_short_names(in_format(result, config.format)))
        return
    print(with_short_names(text))
    if config.output is not None:
        print(f"numbers: {config.output}")
    name = config.model or model_of(config.store)
    if config.model is None and name.isprintable():
        print(f"for the cost in cross-entropy: --model {shlex.quote(name) if name else 'NAME'}")
    if first := next((path for name, path in named.items() if name not in relatives), None):
        print_next("analyze", sae=first, store=config.store, hook_point=config.hook_point, model=name)


OF_ROWS = ("held_out", "held_out_fraction", "max_tokens", "windows_tokens", "hook_point")


def named_saes(given: Sequence[str]) -> dict[str, str]:
    """The SAEs by the shortest names that tell them apart; a folder of runs, such as a grid's, stands for
    all SAEs right below it. raises: ValueError for one SAE named twice"""
    paths: list[str] = []
    for one in given:
        below = [] if Path(one, "cfg.json").exists() else sorted(Path(one).glob("*/cfg.json"))
        paths += [str(cfg.parent) for cfg in below] or [one]
    if len(set(paths)) < len(paths):
        raise ValueError(f"--sae expected each SAE once, got {' '.join(paths)}")
    short = [Path(path).name for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Score an SAE on the held-out documents of a store, beside what gives the numbers their meaning; or
    several side by side."""

    sae: tuple[str, ...]
    """Folder of the SAE, ours or SAELens', or a hub repository. Several are shown side by side; the folder of
    a grid stands for its SAEs. With a relative among them (pca, dense, variational, …) the table shows fvu
    beside as many principal components, bits a row, codes of few bits, and dead units by their variance."""

    store: str
    """Folder of the activation store."""

    baseline: str | None = None
    """Folder of an SAE to compare with: the one of the same run with --freeze-decoder."""

    seeds: tuple[str, ...] = ()
    """Folders of runs that differ from the SAE in their seed only. They show the seed noise of every number
    and whether the seeds found the same directions."""

    model: str | None = None
    """The model that was harvested, for what the reconstruction costs in cross-entropy; "demo" is the
    embedded one."""

    hook_point: str | None = None
    """Hook point of the store; None takes the one that the SAE was trained on."""

    held_out: bool = True
    """Score documents that training held out; otherwise rows that training has seen."""

    held_out_fraction: Annotated[float | None, AtLeast(0), Below(1)] = None
    """Share of documents that training held out; None takes what the SAE records."""

    max_tokens: Annotated[int | None, AtLeast(1)] = 100_000
    """Rows to score, and their tokens, of documents drawn by a hash; None for all."""

    windows_tokens: Annotated[tuple[int, ...], AtLeast(1)] = (10_000, 100_000, 1_000_000, 10_000_000)
    """A latent is dead if it was silent in the last tokens of the store: a column for each number of tokens,
    up to the first that is longer than the store."""

    all: bool = False
    """Print every number, including what other libraries call explained variance; the JSON always has
    them."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How the numbers are printed; all but table print nothing else."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    output: str | None = None
    """File that receives the numbers as JSON, with definitions; in the SAE's folder, `saelens-lite report`
    shows it."""
