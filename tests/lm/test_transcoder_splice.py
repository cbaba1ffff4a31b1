"""A transcoder in the place of an MLP equals two plain hooks: one reads, one replaces what the MLP adds."""

import pytest
import torch

from saelens_lite.errors import HookError
from saelens_lite.lm.hooks import run_to
from saelens_lite.lm.replacement import splice
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.sae.transcoder import Transcoder

from .test_hooks import FAMILIES, IDS, build

BLOCK = 1
READS, WRITES = f"blocks.{BLOCK}.mlp.hook_in", f"blocks.{BLOCK}.hook_mlp_out"
OF_FAMILIES = pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "neox", "phi", "mixtral"])


def transcoder_of(width, **target):
    """A skip-transcoder of random weights."""
    config = SAEConfig(
        d_model=width, d_sae=3 * width, kind="relu", apply_b_dec_to_input=False, hook_point=READS,
        target=Target(d_model=width, skip=True, **{"hook_point": WRITES, **target}),
    )  # fmt: skip
    transcoder, generator = Transcoder(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return transcoder


def plain(family, new):
    """Logits of the model with what its MLP adds replaced by new(what it adds, what it read)."""
    model_class, config_class, arguments, blocks, _, adds = FAMILIES[family]
    model, seen = build(model_class, config_class, arguments), []
    block = model.get_submodule(f"{blocks}.{BLOCK}")

    def replace(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        value = new(value, seen[0])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    block.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    block.get_submodule(adds).register_forward_hook(replace)
    with torch.no_grad():
        return model(IDS).logits


def model_of(family):
    model_class, config_class, arguments, *_ = FAMILIES[family]
    return build(model_class, config_class, arguments)


@OF_FAMILIES
def test_an_mlp_replaced_equals_two_plain_hooks(family):
    model = model_of(family)
    width = model.config.hidden_size
    transcoder = transcoder_of(width)
    want = plain(family, lambda added, read: transcoder(read).recons)
    with torch.no_grad():
        clean = model(IDS).logits
        with splice(model, transcoder, positions="all"):
            got = model(IDS).logits
        with splice(model, transcoder):  # not BOS, which stands first
            first = run_to(model, [WRITES], input_ids=IDS)[WRITES][:, 0]
        assert torch.equal(first, run_to(model, [WRITES], input_ids=IDS)[WRITES][:, 0])
        assert torch.equal(model(IDS).logits, clean)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got - clean).abs().max() > 1e-2


def test_a_place_before_the_input_is_refused():
    model = model_of("gpt2")
    transcoder = transcoder_of(model.config.hidden_size)
    with (
        pytest.raises(HookError, match="reaches only after blocks.0.hook_mlp_out"),
        splice(model, transcoder, "blocks.0.hook_mlp_out"),
        torch.no_grad(),
    ):
        model(IDS)
