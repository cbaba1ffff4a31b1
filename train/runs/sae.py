"""The SAE of a run: what it is, what it starts from, and how it is saved."""

from __future__ import annotations

import saelens_lite
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

from ..comm import Alone
from ..config import TrainConfig
from ..kinds.choice import kind_class
from ..optimise.fold import fold_decoder_norms_, fold_pair, fold_scale
from ..optimise.initial import initial_sae, initial_transcoder, sae_to_finetune
from ..optimise.trainer import Trainer
from ..rows.protocol import Rows

_INIT_ROWS = 32_768


def sae_config(config: TrainConfig, rows: Rows, d_sae: int | None = None) -> SAEConfig:
    """The configuration of the whole SAE; d_sae: None for what `config` says.

    raises: ValueError for a k above it
    """
    kind = kind_class(str(config.kind)).sae_kind
    if d_sae is None:
        source = config.init_from and SparseAutoencoder.read_config(config.init_from)
        d_sae = source.d_sae if source else config.d_sae or config.expansion * rows.d_model
        if kind_class(str(config.kind)).keeps_k:
            config.expect(int(config.k or 0) <= d_sae, "k", f"at most d_sae={d_sae}")
    return SAEConfig(
        d_model=rows.d_model,
        d_sae=d_sae,
        kind=kind,
        k=config.k if kind == "topk" else None,
        apply_b_dec_to_input=rows.pair is None,
        target=rows.pair and rows.pair.target,
        hook_point=rows.hook_point,
        hf_module=rows.hf_module,
        model_name=rows.model_name,
        metadata={"saelens_lite": {"version": saelens_lite.__version__, **rows.record}},
    )


def starting_sae(config: TrainConfig, rows: Rows, comm: Alone) -> SparseAutoencoder:
    """This process's shard at step 0, on the CPU, in the scale of training."""
    sample, whole = rows.sample(_INIT_ROWS) * rows.scale, sae_config(config, rows)
    scale = kind_class(str(config.kind)).encoder_scale
    if rows.pair is not None:
        return initial_transcoder(whole, sample[:, rows.d_model :], config.seed, scale, comm)
    if config.init_from is not None:
        return sae_to_finetune(whole, config.init_from, rows.scale, config.unit_decoder, comm)
    return initial_sae(whole, sample, config.seed, scale, comm)


def saved_sae(trainer: Trainer, rows: Rows) -> SparseAutoencoder:
    """A copy of the SAE as it stands: in the units of the store, with unit decoder rows, of all shards."""
    sae = fold_scale(trainer.kind.folded(), trainer.scale)
    if not trainer.config.unit_decoder:
        fold_decoder_norms_(sae)
    if rows.pair is not None:
        sae = fold_pair(sae, rows.pair.scales, rows.pair.centre)
    return trainer.comm.whole_sae(sae, sae_config(trainer.config, rows, trainer.kind.d_sae))
