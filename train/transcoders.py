"""train_transcoder: rows of two places of a store in, a saved transcoder out.

A transcoder trains by the step that an SAE trains by: its kinds take what is read and what is to be
reconstructed apart. Rows, row order, checkpoints, resuming, processes and metrics.jsonl are those of
train_sae.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from saelens_lite import distributed
from saelens_lite.config import from_mapping, takes_fields
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.transcoder import Transcoder

from .config import TrainConfig
from .kinds.choice import settled
from .rows.pair_rows import PairRows
from .run_config import OF_ROWS
from .runs.identity import finished
from .runs.process import device_of, writes
from .runs.run import Run
from .runs.sae_learner import SAELearner
from .runs.side_by_side import train_runs
from .single import Store, opened

log = logging.getLogger(__name__)

KINDS = ("batchtopk", "topk", "jumprelu")
LEFT_OUT = ("preset", "init_from", "end_to_end", "baseline", "resample_every_steps", "store_weights")
"""Fields of SAEs that transcoders do not take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscoderConfig(TrainConfig):
    """One transcoder trained on two hook points of an activation store: `hook_point` and the target."""

    target_hook_point: Annotated[str | None, OF_ROWS] = None
    """Hook point of the store whose rows are predicted from those of `hook_point`: what an MLP adds,
    blocks.3.hook_mlp_out, from what it reads, blocks.3.mlp.hook_in."""
    skip: bool = False
    """Add an affine map of the input to what the latents write: a skip-transcoder (arXiv:2501.18823)."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        self.expect(self.kind is None or self.kind in KINDS, "kind", f"one of {KINDS} for a transcoder")
        for name in LEFT_OUT:
            expected = False if name == "baseline" else None
            self.expect(getattr(self, name) == expected, name, f"{expected} for a transcoder")
        self.expect(self.latent_shards == 1, "latent_shards", "1 for a transcoder: divide its rows instead")


class TranscoderLearner(SAELearner):
    """A `Trainer` of a transcoder as a run's `Learner`."""

    NAME = "transcoder"

    @staticmethod
    def load(output: Path, config: TrainConfig) -> Transcoder:
        return Transcoder.load(output, device=device_of(config))


@takes_fields(TranscoderConfig, but=("store", "config", *LEFT_OUT, "latent_shards"))
@names_misfits
def train_transcoder(
    store: Store,
    hook_point: str,
    target_hook_point: str,
    *,
    output: str,
    kind: str = "batchtopk",
    skip: bool = False,
    **fields: Any,
) -> Transcoder:
    """Train a transcoder and save it; the same call resumes, and returns it once it is finished.

        transcoder = train_transcoder(
            "store/", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out", k=32, output="runs/transcoder"
        )
        transcoder(acts).recons  # what the MLP would add, in the units of the model

    Training reads s_in · (x − centre) and predicts s_out · y. Both are scaled as train_sae scales, and the
    centre is the geometric median of the inputs. All three are folded into what is saved.

    store: an open one or its folder, with rows of both places
    hook_point, target_hook_point: what is read, and what is predicted from it
    kind: batchtopk, topk or jumprelu. batchtopk and jumprelu are saved in SAELens' format; SAELens has no
        transcoder that keeps k latents a token
    skip: add an affine map of the input (Paulo et al. 2025, arXiv:2501.18823)
    fields: of TrainConfig, as for train_sae
    returns: the transcoder, in the units of the store, on the training device, in every process
    raises: as train_sae; ValueError for a kind or field that transcoders do not take, or one place twice
    source: Dunefsky et al. 2024, arXiv:2406.11944
    """
    [open_store] = opened([store])
    given = {"store": str(open_store.path), "output": output, "kind": kind, "skip": skip, **fields}
    places = {"hook_point": hook_point, "target_hook_point": target_hook_point}
    config = settled(from_mapping(TranscoderConfig, {**given, **places}, "train_transcoder"))
    with distributed.joined(device_of(config)):
        rows = PairRows(open_store, config, target_hook_point, skip, device_of(config))
        trained = finished(rows, config, TranscoderLearner)
        if trained is not None:
            if writes():
                log.info("finished already: %s", output)
            return trained
        [outcome] = train_runs([Run(rows, config, learns=TranscoderLearner)])
    if isinstance(outcome, FloatingPointError):
        raise outcome
    return outcome
