"""What training minimises: pure functions of tensors, every sum over d_model and mean over tokens.

For acts of mean squared norm d_model (the scale in which SAEs are trained here), losses and coefficients are
comparable between models and with SAELens, whose definitions these are.
"""

from __future__ import annotations

from torch import Tensor


def reconstruction(acts: Tensor, recons: Tensor) -> Tensor:
    """mean over tokens of ‖acts − recons‖²; float[batch d_model] both; returns float[""]."""
    return (acts - recons).square().sum(-1).mean()


def l1(latent_acts: Tensor) -> Tensor:
    """mean over tokens of Σ_i latent_acts_i, for unit-norm decoder rows; float[batch d_sae]; returns
    float[""].

    source: Bricken et al. 2023. The norm constraint is what keeps latents from shrinking while rows grow.
    """
    return latent_acts.sum(-1).mean()


def auxk(error: Tensor, error_recons: Tensor) -> Tensor:
    """mean over tokens of ‖error − error_recons‖²: what dead latents could explain of what is left.

    error: float[batch d_model], acts − recons of the main pass, no gradient flows into it
    source: Gao et al. 2024, arXiv:2406.04093, section 2.4
    """
    return reconstruction(error.detach(), error_recons)
