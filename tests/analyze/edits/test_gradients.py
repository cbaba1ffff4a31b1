"""The derivative of an edit's amount and direction, where the edit changes something and where not."""

import pytest
import torch
from torch import nn

from saelens_lite.analyze.edits.directions import ablate_direction, steer_direction
from saelens_lite.analyze.edits.latents import clamp, scale, steer

from .test_latents import LATENTS, POINT, TEXTS, WIDTH, model_of, sae_of

SAE = sae_of().requires_grad_(False)
DIRECTION = torch.linspace(-1, 1, WIDTH, dtype=torch.float64).cos()
THREE = torch.stack([DIRECTION, DIRECTION.sin(), torch.eye(WIDTH, dtype=torch.float64)[3]])
AT = {"hook_point": POINT}
CASES = {
    "scale at 1": (torch.ones(3), lambda m, v: scale(m, SAE, LATENTS, v)),
    "steer at 0": (torch.zeros(3), lambda m, v: steer(m, SAE, LATENTS, v)),
    "steer at 1": (torch.ones(3), lambda m, v: steer(m, SAE, LATENTS, v)),
    "clamp at 1": (torch.ones(3), lambda m, v: clamp(m, SAE, LATENTS, v)),
    "strength of a direction at 0": (torch.zeros(1), lambda m, v: steer_direction(m, DIRECTION, v, **AT)),
    "a direction": (DIRECTION, lambda m, v: steer_direction(m, v, 2.0, **AT)),
    "a direction, by norm": (DIRECTION, lambda m, v: steer_direction(m, v, 0.5, unit="resid_norm", **AT)),
    "a direction taken out": (DIRECTION, lambda m, v: ablate_direction(m, v, **AT)),
    "orthogonal ones taken out": (torch.eye(WIDTH)[:3], lambda m, v: ablate_direction(m, v, **AT)),
    "three taken out": (THREE, lambda m, v: ablate_direction(m, v, **AT)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_slope_of_differences(case):
    model = model_of("llama").double().requires_grad_(False)
    (at, edited), ids = CASES[case], torch.tensor([TEXTS[0]])
    at = at.double()
    towards = torch.linspace(1, 2, at.numel(), dtype=torch.float64).view_as(at)

    def metric(value):
        with edited(model, value):
            return model(input_ids=ids, use_cache=False).logits[0, -1].log_softmax(-1)[5]

    value = at.clone().requires_grad_()
    metric(value).backward()
    step = 1e-3  # Llama norms in float32
    with torch.no_grad():
        slope = (metric(at + step * towards) - metric(at - step * towards)) / (2 * step)
    assert abs(slope) > 1e-4
    torch.testing.assert_close((value.grad * towards).sum(), slope, rtol=0.01, atol=1e-5)


def test_directions_that_are_nearly_one_are_all_taken_out():
    model, ids, seen = model_of("llama"), torch.tensor([TEXTS[0]]), []
    near = torch.stack([DIRECTION, DIRECTION + 1e-3 * torch.eye(WIDTH, dtype=torch.float64)[0]]).float()
    with torch.no_grad(), ablate_direction(model, near, skip_ids=(), **AT):
        handle = model.model.layers[2].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        model(input_ids=ids, use_cache=False)
        handle.remove()
    basis = nn.functional.normalize(torch.stack([near[0], near[1] - near[0]]))
    assert (seen[0] @ basis.T).abs().max() < 1e-3
