"""Writes the golden folders: SAEs that SAELens itself saved, with an input and what SAELens computes from it.

    .venv-peers/bin/python tests/golden/make_saelens.py

Written with sae-lens 6.54.12. The tests read the folders without sae-lens. Parameters are random but fixed;
decoder rows have different norms, so a reader that forgets a rescale is caught.
"""

from pathlib import Path

import torch
from sae_lens import SAE, GatedSAEConfig, JumpReLUSAEConfig, StandardSAEConfig, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file

D_IN, D_SAE, ROWS = 8, 16, 32
HERE = Path(__file__).parent
COMMON = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
CASES = {
    "standard": StandardSAEConfig(**COMMON, apply_b_dec_to_input=False, normalize_activations="layer_norm"),
    "topk": TopKSAEConfig(**COMMON, k=4, rescale_acts_by_decoder_norm=True),
    "jumprelu": JumpReLUSAEConfig(**COMMON, normalize_activations="constant_norm_rescale"),
    "gated": GatedSAEConfig(**COMMON),
}


def main() -> None:
    for seed, (name, config) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        config.metadata = SAEMetadata(
            model_name="a-tiny-model",
            hook_name="blocks.1.hook_resid_post",
            hf_hook_name="model.layers.1",
            context_size=32,
            l0=3.5,
        )
        sae = SAE.from_dict(config.to_dict())
        for parameter in sae.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        if name == "jumprelu":
            sae.threshold.data = sae.threshold.data.abs() + 0.1
        folder = HERE / f"saelens_{name}"
        sae.save_model(folder)
        acts = torch.randn(ROWS, D_IN, generator=generator) + 0.3
        with torch.no_grad():
            latents = sae.encode(acts)
            recons = sae(acts)
        save_file(
            {"acts": acts, "latent_acts": latents.contiguous(), "recons": recons.contiguous()},
            folder / "expected.safetensors",
        )


if __name__ == "__main__":
    main()
