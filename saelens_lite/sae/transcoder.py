"""Transcoders: sparse latents read at one place of a model, which write what another place adds."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor, nn

from saelens_lite.formats import gemma_scope
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SAEOutput, SparseAutoencoder
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.sae.folder import read


class Transcoder(SparseAutoencoder):
    """Latents of the rows of one place, decoded to those of another: an MLP's input and what it adds.

        pre_acts    = acts @ W_enc + b_enc
        latent_acts = ReLU | TopK | JumpReLU (pre_acts)
        recons      = latent_acts @ W_dec + b_dec (+ acts @ W_skipᵀ)

    acts: float[... d_model], at config.hook_point; recons: float[... d_out], at target.hook_point
    W_dec: float[d_sae d_out]; b_dec: float[d_out]
    W_skip: float[d_out d_model], of a skip-transcoder only

    `decode` gives the latents' part and b_dec; `forward` adds the skip, which reads the activations.

    source: Dunefsky et al. 2024, arXiv:2406.11944; the skip: Paulo et al. 2025, arXiv:2501.18823
    """

    @names_misfits
    def __init__(self, config: SAEConfig) -> None:
        self.check_opens(config, "Transcoder")
        super().__init__(config)

    @classmethod
    def check_opens(cls, config: SAEConfig, name: str) -> None:
        """raises: ValueError for an SAE or a crosscoder, which have no target, and for a transcoder of a
        place that no module reads
        """
        if gemma_scope.reads_before_gain(config):
            model = config.model_name or "Gemma 2"
            raise ValueError(
                f"{name} reads {config.hook_point}, before the gain of the norm, where no module ends: pass "
                f"the model, Transcoder.load(…, model=model) of {model}, and it moves behind the gain"
            )
        if config.target is None:
            what, opens = ("a crosscoder", "Crosscoder") if config.sides else ("an SAE", "SparseAutoencoder")
            raise ValueError(
                f"{name}: expected a transcoder, got {what} of d_model={config.d_model}: "
                f"saelens_lite.sae.{opens}.load opens it"
            )

    @property
    def target(self) -> Target:
        assert self.config.target is not None  # check_opens
        return self.config.target

    @property
    def d_out(self) -> int:
        return self.config.d_out

    @classmethod
    @names_misfits
    def load(
        cls,
        path_or_repo: str | Path,
        folder: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        format: str | None = None,
        model: nn.Module | None = None,
    ) -> Self:
        """Read a transcoder: ours, SAELens' four architectures, or one of another format.

        model: the model that it is of, a Hugging Face one; needed for Gemma Scope's of Gemma 2, which read
            before the gain of the norm, to move them behind it, to blocks.{i}.mlp.hook_in
        raises: as SparseAutoencoder.load; ValueError where the model is needed, or does not fit
        """
        config, state, name = read(path_or_repo, folder, dtype, format)
        if model is not None and gemma_scope.reads_before_gain(config):
            config, state = gemma_scope.after_gain(config, state, model)
        return cls.of_state(config, state, name).to(device=device)

    def pruned(self, tau: float | None) -> NoReturn:
        """raises: ValueError: a leave-one-out score needs the target, which encoding does not see"""
        raise ValueError(
            "pruned expected an SAE, got a transcoder: whether other latents make up for one depends on the "
            "target, which is not known when it encodes; use the transcoder whole"
        )

    def forward(self, acts: Tensor) -> SAEOutput:
        """The target predicted from `acts`, float[... d_out], and the latents; acts: float[... d_model]."""
        recons, latents = super().forward(acts)
        if self.target.skip:
            recons = recons + acts.to(self.dtype) @ self.W_skip.T
        return SAEOutput(recons, latents)

    def extra_repr(self) -> str:
        skip = ", skip" if self.target.skip else ""
        return f"{super().extra_repr()}, d_out={self.d_out}, to={self.target.hook_point!r}{skip}"
