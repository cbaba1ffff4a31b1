"""Deep belief networks: phases that pretrain one machine each, from the rows up, then fine-tuning of all."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.autoencoders.autoencoder import Loss
from saelens_lite.autoencoders.deep_belief import DeepBelief

from ..optimise.schedules import lr_factor
from .learner import AutoencoderLearner
from .rbm import RBM


class DeepBeliefLearner(AutoencoderLearner):
    """Adam on contrastive divergence, machine after machine, then on the loss of the whole.

    A machine sees the means of the hidden units below it. Its weights are the encoder's layer and, once its
    phase ends, transposed the decoder's. Each phase has a learning rate that falls to 0.
    """

    autoencoder: DeepBelief
    default_lr = 1e-2

    @property
    def phase(self) -> tuple[int, int, int]:
        """(its number, first step, end) of the step that comes; after the machines the number of layers."""
        n_machines = len(self.autoencoder.encoder)
        steps = int(self.config.pretrain_fraction * self.n_steps)
        ends = [steps * (i + 1) // n_machines for i in range(n_machines)] + [self.n_steps]
        number = next(i for i, end in enumerate(ends) if self.steps_done < end)
        return number, ([0, *ends])[number], ends[number]

    def machine(self, number: int) -> RBM:
        """The one of a layer, counted from the rows."""
        encoder = self.autoencoder.encoder
        forth, back = encoder[number], self.autoencoder.decoder[-1 - number]
        return RBM(
            forth.weight,
            forth.bias,
            back.bias,
            gaussian_visible=number == 0 and self.config.output_activation == "linear",
            gaussian_hidden=number == len(encoder) - 1,
        )

    def rate(self) -> float:
        _, first, end = self.phase
        steps = end - first
        return lr_factor(self.steps_done - first, steps, 0, round(self.config.decay_fraction * steps))

    def gradients(self, acts: Tensor, draws: torch.Generator) -> Loss:
        return super().gradients(acts, draws) if self._fine_tunes else self._diverge(acts, draws)

    @property
    def _fine_tunes(self) -> bool:
        return self.phase[0] == len(self.autoencoder.encoder)

    @torch.no_grad()
    def _diverge(self, acts: Tensor, draws: torch.Generator) -> Loss:
        number, _, _ = self.phase
        v = self.autoencoder.inputs(acts)
        for below in range(number):
            v = self.machine(below).hidden(v)
        machine = self.machine(number)
        again, gradients = machine.divergence(v, draws, mean=True)
        parameters = (machine.weight, machine.hidden_bias, machine.visible_bias)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        error = (v - again).square().sum(1).mean()
        return Loss(error, error, error.new_zeros(()))

    def update(self, batch: Tensor) -> Loss:
        number, _, end = self.phase
        pretrains = not self._fine_tunes
        stats = super().update(batch)
        if pretrains and self.steps_done == end:
            forth, back = self.autoencoder.encoder[number], self.autoencoder.decoder[-1 - number]
            with torch.no_grad():
                back.weight.copy_(forth.weight.T)
            self.adam.state.clear()  # what comes has moments of its own
        return stats
