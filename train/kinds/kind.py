"""What the trainer asks of a kind of SAE, and what most kinds answer."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import BIAS, LOG_GAIN

from ..comm import ALONE, Alone
from ..config import TrainConfig
from ..random_streams import row_noise
from .contraction import add_contraction


class StepStats(NamedTuple):
    """Device scalars of one step, in the scale of training: no wait for the device until they are read.

    reconstruction: mean ‖x − x̂‖²
    sparsity: the loss that `Kind.sparsity_name` names, before its coefficient
    l0: latents a token, of all shards
    """

    reconstruction: Tensor
    sparsity: Tensor
    l0: Tensor


RESAMPLING_FIELDS = frozenset({"resample_every_steps", "resample_fraction"})


class Kind:
    """How an SAE of one kind is trained: its gradients, and what it needs around the optimiser's step.

    sae: in the scale of training, on the device to train on; where latents are divided, this process's shard
    """

    sae_kind: ClassVar[str]
    """SAEConfig.kind of the SAE, in training and as saved."""
    sparsity_name: ClassVar[str] = "auxk"
    """What StepStats.sparsity is, in metrics.jsonl."""
    encoder_scale: ClassVar[float] = 1.0
    """Of W_enc at the start, see init.initial_sae."""
    fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of TrainConfig that some kinds do not use and this one does; others refuse them."""
    keeps_k: ClassVar[bool] = False
    """Whether a token has k latents, on average at least."""
    not_end_to_end: ClassVar[str] = ""
    """Which kind to expect instead where `end_to_end` is asked for, and why, if it cannot be this one."""
    calibrates: ClassVar[bool] = False
    """Whether `calibrate` has something to do."""
    refit_fraction: ClassVar[float] = 0.0
    """Share of the run, its last, in which what a penalty shrank is fitted again; see refit.py."""
    trains_encoder: ClassVar[bool] = True
    """Whether W_enc learns."""
    adam_beta2: ClassVar[float | None] = None
    """Where it must not be the configuration's."""
    shared_state: ClassVar[frozenset[str]] = frozenset()
    """Names of `state` that all shards have alike."""
    lr_factor: ClassVar[float] = 1.0
    """Of the default learning rate."""
    ramp_fraction: float = 0.05
    """Share of the run over which `ramp` rises, unless the configuration gives its steps."""

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, comm: Alone = ALONE) -> None:
        assert sae.kind == self.sae_kind
        assert sae.config.apply_b_dec_to_input != (sae.config.target is not None)
        self.sae, self.config, self.comm = sae, config, comm
        self.train_decoder = not config.freeze_decoder
        self.step = 0

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """What this kind asks of its fields beyond their bounds. raises: ValueError"""

    @classmethod
    def idle(cls, config: TrainConfig) -> dict[str, str]:
        """Its own fields that change nothing beside the others, and what stands against each."""
        return {}

    @property
    def d_sae(self) -> int:
        """Latents of all shards."""
        return self.sae.d_sae * self.comm.n_shards

    @property
    def largest_lr(self) -> float:
        """Of the default learning rates, which grow as runs shrink."""
        return 1e-2

    @property
    def uses_dead(self) -> bool:
        return False

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What the optimiser trains, by name, apart from W_enc, which the trainer hands over."""
        frozen = {"W_enc"} if self.train_decoder else {"W_enc", "W_dec"}
        return {name: p for name, p in self.sae.named_parameters() if name not in frozen}

    @property
    def rates(self) -> dict[str, float]:
        """Peak learning rates of parameters that do not have the run's, by name."""
        return {}

    def begin(self, step: int, n_steps: int) -> None:
        """What `gradients` needs to know of the step that comes, counted from 0, of a run of n_steps."""
        self.step = step

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Write the gradients of one batch into `.grad`.

        acts: float[B d_model]; of a transcoder float[B d_model+d_out], those of the target beside its input
        dead: int64[m], or None where `uses_dead` is False
        ramp: share of the sparsity coefficient in (0, 1], which rises over the first steps
        returns: the stats and fired bool[d_sae]
        Of a shard: what a dense tensor would show of its latents; b_dec's gradient is a part of a sum over
        shards. Every branch exchanges alike, as shards need not take the same one.
        """
        raise NotImplementedError

    def scaled(self, batch: Tensor, scale: float) -> Tensor:
        """A batch of the rows as `gradients` takes it: on the SAE's device, in the scale of training."""
        return batch.to(self.sae.device) * scale

    def write_gradients(
        self, dec_grad: Tensor, enc_grad: Tensor, product_grad: Tensor, b_dec_grad: Tensor
    ) -> None:
        """Into `.grad` of W_dec, W_enc and b_dec; of a shard, its part of that of b_dec.

        dec_grad, enc_grad: float[d_sae d_out] and float[d_sae d_model], latent-major
        product_grad: float[d_sae], of inputs @ W_enc, summed over tokens
        b_dec_grad: float[d_out], ∂L/∂recons summed over tokens and reconstructions that add b_dec
        """
        sae = self.sae
        sae.W_dec.grad = dec_grad if self.train_decoder else None
        sae.W_enc.grad = enc_grad.T
        sae.b_dec.grad = b_dec_grad / self.comm.n_shards  # all shards have this part
        if sae.config.apply_b_dec_to_input:  # this one, from b_dec in the encoder's input, sums over latents
            sae.b_dec.grad -= sae.W_enc @ product_grad

    def write_skip_gradient(self, inputs: Tensor, *recons_grads: Tensor) -> None:
        """Into `.grad` of a skip-transcoder's W_skip; recons_grads: float[B d_out], ∂L/∂recons of each
        reconstruction."""
        if self.has_skip:
            self.sae.W_skip.grad = sum(grad.T @ inputs for grad in recons_grads)

    @property
    def has_skip(self) -> bool:
        target = self.sae.config.target
        return target is not None and target.skip

    def read(self, acts: Tensor) -> tuple[Tensor, Tensor]:
        """What the SAE reads and what it is to reconstruct: the same, unless it is a transcoder.

        acts: as `gradients` takes them; returns: float[B d_model], float[B d_out]
        """
        config = self.sae.config
        if config.target is None:
            return acts, acts
        return acts[:, : config.d_model], acts[:, config.d_model :]

    def centred(self, acts: Tensor, out: Tensor | None = None) -> Tensor:
        """What the encoder multiplies, float[B d_model]: acts − b_dec; of a transcoder what it reads, centred
        already."""
        if self.sae.config.target is None:
            return torch.sub(acts, self.sae.b_dec, out=out)
        inputs, _ = self.read(acts)
        return inputs.contiguous() if out is None else out.copy_(inputs)

    def targets(self, acts: Tensor, inputs: Tensor) -> Tensor:
        """What latents and b_dec are to reconstruct, float[B d_out]: acts; of a transcoder the target's rows,
        less what its skip makes of `inputs`."""
        _, targets = self.read(acts)
        if self.has_skip:
            return torch.addmm(targets, inputs, self.sae.W_skip.T, alpha=-1)
        return targets.contiguous()

    def encoder_inputs(self, acts: Tensor, out: Tensor | None = None) -> Tensor:
        """What the encoder sees, float[B d_model]: `centred`, plus noise where `input_noise` asks for it.

        source: Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders"
        """
        inputs = self.centred(acts, out)
        if self.config.input_noise:
            noise = row_noise(inputs, self.comm.first_row(len(acts)), self.config.seed, self.step)
            inputs.add_(noise, alpha=self.config.input_noise)
        return inputs

    def contract(self, n_fired: Tensor, n_tokens: int) -> None:
        """Add the gradient of the contractive penalty to `.grad`, if there is one.

        n_fired: float[d_sae], the tokens of n_tokens in which each latent is on
        """
        if self.config.contractive_coeff:
            add_contraction(self.sae, n_fired / n_tokens, self.config)

    def contract_pairs(self, values: Tensor, indices: Tensor, n_tokens: int) -> None:
        """`contract`, of the latents indices int64[...] that are on where values float[...] are above 0."""
        if self.config.contractive_coeff:
            n_fired = values.new_zeros(self.sae.d_sae)
            self.contract(n_fired.index_add_(0, indices.reshape(-1), values.reshape(-1).sign()), n_tokens)

    def along_constraint(self, dec_grad: Tensor) -> Tensor:
        """The decoder's gradient float[d_sae d_model] as far as rows of norm 1 can follow it."""
        return remove_parallel(dec_grad, self.sae.W_dec) if self.config.unit_decoder else dec_grad

    def decoder_norms(self) -> Tensor:
        """Norms of the decoder's rows, float[d_sae], which weigh latents in penalties; for unit rows 1."""
        unit = self.sae.W_dec.new_ones(())
        return unit if self.config.unit_decoder else row_norms(self.sae.W_dec)

    def after_update(self) -> None:
        """After an optimiser step: bring decoder rows back to norm 1, unless they are free."""
        if self.train_decoder and self.config.unit_decoder:
            unit_rows_(self.sae.W_dec)

    def restart(self, latents: Tensor) -> None:
        """Set the biases and gains of latents int64[m] to what they were at the start; for resampling."""
        for name, of in self.sae.config.parameters.items():
            if of.of_latents and of.role in (BIAS, LOG_GAIN):
                self.sae.get_parameter(name)[latents] = 0

    def calibrate(self, acts: Tensor) -> None:
        """Before the SAE is saved, if `calibrates`: fit what is fitted to held-out rows, until the next step.

        acts: float[n d_model], in the scale of training; rows trained on where none are held out
        """

    def follow(self, l0: Tensor, lr: float, ramp_steps: int) -> None:
        """After a step that had l0 float[""] latents a token, in the whole batch.

        lr: the peak learning rate; ramp_steps: in which `ramp` rises
        """

    def metrics(self) -> dict[str, float]:
        """Numbers of its own for metrics.jsonl."""
        return {}

    def folded(self) -> SparseAutoencoder:
        """The SAE as it stands, in the scale of training; of a shard, its part."""
        return self.sae

    def state(self) -> dict[str, Tensor]:
        """What an exact resume needs beyond the SAE's parameters and the optimiser's state."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


@torch.no_grad()
def unit_rows_(W_dec: Tensor) -> None:
    W_dec.div_(row_norms(W_dec)[:, None])


def row_norms(W_dec: Tensor) -> Tensor:
    """Norms to divide by, float[d_sae]: a row of zeros, which a pruned latent has, stays one."""
    return torch.linalg.vector_norm(W_dec, dim=1).clamp_min_(torch.finfo(W_dec.dtype).tiny)
