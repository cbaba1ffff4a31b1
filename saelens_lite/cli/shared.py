"""What the commands share: the word "demo", models by name, which process speaks, and what to type next."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelens_lite.config import to_mapping
from saelens_lite.errors import SaelensLiteError

if TYPE_CHECKING:
    from torch import nn

    from saelens_lite.analyze.index.feature_index import FeatureIndex
    from saelens_lite.harvest.config import HarvestConfig
    from saelens_lite.store.reader import ActivationStore

logger = logging.getLogger(__name__)

EMBEDDED = "demo"
"""As a --model the embedded language model, as a --dataset the source of Python's standard library."""


def carry_out(config: HarvestConfig, dry_run: bool) -> Any:
    """The harvest, or its estimate. The word "demo" stands for the embedded model, its corpus, or both."""
    from saelens_lite.harvest.harvest import estimate_harvest, estimate_run, harvest_activations, run_harvest

    if EMBEDDED not in (config.model, *config.dataset):
        return estimate_run(config) if dry_run else run_harvest(config)
    options = to_mapping(config)
    model, dataset = embedded(options.pop("model"), options.pop("dataset"))
    return (estimate_harvest if dry_run else harvest_activations)(model, dataset, **options)


def embedded(model: str, dataset: tuple[str, ...]) -> tuple[str, Any]:
    """The folder of the embedded model and the documents of its corpus, where "demo" stands for them."""
    from saelens_lite.demo.corpus import documents

    if EMBEDDED in dataset and len(dataset) > 1:
        raise ValueError(f"--dataset {EMBEDDED} stands alone, got {' '.join(dataset)}")
    return _model_name(model), documents() if dataset == (EMBEDDED,) else list(dataset)


def model_for(
    name: str | None,
    device: str,
    store: ActivationStore | FeatureIndex,
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module | None:
    """The model of that name, in the revision that was harvested where store or index record one."""
    from saelens_lite.harvest.shards.model import load_model

    if name is None:
        return None
    revision = store.plan.get("model", {}).get("revision")
    return load_model(
        _model_name(name),
        compute_dtype=compute_dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def model_and_tokenizer(name: str, device: str) -> tuple[nn.Module, Any]:
    """The model of that name, ready for inference, and its tokenizer."""
    from saelens_lite.harvest.shards.model import load_model, load_tokenizer

    name = _model_name(name)
    return load_model(name, device=device), load_tokenizer(name)


def _model_name(name: str) -> str:
    """The folder of the embedded model where "demo" stands for it."""
    if name != EMBEDDED:
        return name
    from saelens_lite.demo.embedded import MODEL_DIR

    quiet_loading()
    return str(MODEL_DIR)


def is_first_process() -> bool:
    """Whether this process prints: the first of those that torchrun started."""
    from saelens_lite.distributed import rank

    return rank() == 0


def device_named(name: str | None) -> str:
    """The device of this process: under torchrun each has a GPU of its own."""
    from saelens_lite.device import chosen_device
    from saelens_lite.distributed import own_device

    return own_device(chosen_device(name))


def model_of(store: str) -> str:
    """What to type as --model for the model of a store; "" where the store is gone, as it is for a hint."""
    from saelens_lite.demo.embedded import MODEL_DIR
    from saelens_lite.store.reader import ActivationStore

    try:
        name = ActivationStore(store).model_name
    except (SaelensLiteError, ValueError, OSError):
        return ""
    return EMBEDDED if name == str(MODEL_DIR) else name


def evaluation_to_show(given: str | None, sae: str | None, hook_point: str) -> str | None:
    """The file of the evaluation that a page shows: the given one, else evaluation.json in the SAE's folder
    where it is one at the hook point.

    raises: ValueError for a given one that is not
    """
    from saelens_lite.analyze.evaluation.recorded import recorded_evaluation

    beside = Path(sae or "", "evaluation.json")
    if given is None and (sae is None or not beside.is_file()):
        return None
    try:
        recorded_evaluation(given or beside, hook_point)
    except (OSError, ValueError) as error:
        if given is not None:
            raise
        logger.info("the page does not show %s: %s", beside, error)
        return None
    return given or str(beside)


def with_short_names(text: str) -> str:
    from saelens_lite.demo.embedded import MODEL_DIR

    return text.replace(str(MODEL_DIR), "the embedded model")


def print_next(command: str, *values: str, **flags: Any) -> None:
    """Print the command to type next, quoted for the shell.

    A flag without a value is left out. Names may come from data: nothing is printed where one holds
    characters that cannot be seen, and none is taken for a flag.
    """
    words = [*map(_no_flag, values)]
    for name, value in flags.items():
        if value:
            given = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(_no_flag, given)]
    if all(word.isprintable() for word in words):
        print(f"next: {shlex.join(['saelens-lite', command, *words])}")


def _no_flag(value: Any) -> str:
    return f"./{value}" if str(value).startswith("-") else str(value)


def quiet_loading() -> None:
    """No bar for the 38 tensors of the embedded model."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def common_mean(gamma: float) -> str:
    """What γ of rows (store/common_mean.py) says, in a line."""
    return (
        f"the mean of the rows is {gamma:.2f} times their spread (γ): the larger it is, the more latents are "
        "dead at the start where b_dec is 0"
    )
