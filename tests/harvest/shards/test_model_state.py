"""What tells one state of a model from another: numbers are sampled, adapters, autocast and hooks named."""

import numpy as np
import pytest
import torch
from torch import nn

import saelens_lite as sl
from saelens_lite.harvest.shards.model_state import _sampled, state_facts


def changed(model, change):
    before = state_facts(model)
    with torch.no_grad():
        change(model)
    after = state_facts(model)
    return {name for name in before if before[name] != after[name]}


def test_samples_are_spread_over_the_whole_tensor():
    """One value of each four of 16,384; all of what is smaller; a transposed tensor by its own order."""
    numbers = torch.arange(16_384, dtype=torch.int32)
    found = np.frombuffer(_sampled(numbers), dtype=np.int32)
    assert (found // 4).tolist() == list(range(4096)) and len(set(found % 4)) == 4
    assert np.frombuffer(_sampled(numbers[5:9]), dtype=np.int32).tolist() == [5, 6, 7, 8]
    turned = numbers[:6].view(2, 3).t()
    assert np.frombuffer(_sampled(turned), dtype=np.int32).tolist() == [0, 3, 1, 4, 2, 5]
    halves = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert np.frombuffer(_sampled(halves), dtype=np.uint16).tolist() == [0x3F80, 0x4000]


def test_one_number_anywhere(gpt2):
    gpt2.transformer.h[1].register_buffer("router_bias", torch.zeros(8))
    assert changed(gpt2, lambda model: None) == set()
    assert changed(gpt2, lambda model: model.transformer.h[1].ln_2.bias[31].add_(1)) == {"values_sha256"}
    assert changed(gpt2, lambda model: model.transformer.h[1].router_bias[5].add_(1)) == {"values_sha256"}
    # a row far behind the first 256 values of 259 x 32
    assert changed(gpt2, lambda model: model.transformer.wte.weight[200].add_(1)) == {"values_sha256"}


class Packed(nn.Module):
    """Keeps its weight outside parameters and buffers, as packed int8 layers do."""

    def __init__(self):
        super().__init__()
        self.packed = torch.arange(6, dtype=torch.int8), torch.tensor(0.5)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}packed"] = self.packed


def test_packed_weights(gpt2):
    gpt2.transformer.h[0].extra = Packed()
    assert changed(gpt2, lambda model: model.transformer.h[0].extra.packed[1].add_(1)) == {"values_sha256"}


def test_offloaded_weights_are_those_of_the_model_in_memory(gpt2):
    from accelerate import cpu_offload

    whole = state_facts(gpt2)
    kept = {name: value.clone() for name, value in gpt2.state_dict().items()}
    cpu_offload(gpt2, execution_device=torch.device("cpu"), state_dict=kept)
    assert {value.device.type for value in gpt2.parameters()} == {"meta"}
    assert state_facts(gpt2) == whole
    assert changed(gpt2, lambda _: kept["transformer.h.1.mlp.c_fc.bias"][100].add_(1)) == {"values_sha256"}
    assert {value.device.type for value in gpt2.parameters()} == {"meta"}


@pytest.fixture
def two_adapters(gpt2):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(gpt2, config, adapter_name="first")
    model.add_adapter("second", config)
    model.set_adapter("first")
    return model.eval()


# peft 0.21 asks transformers 5.23 for a property by its old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_which_adapter_acts_and_how(two_adapters):
    assert state_facts(two_adapters)["adapters"]["active"] == ["first"]
    assert changed(two_adapters, lambda model: model.set_adapter("second")) == {"adapters"}
    layer = two_adapters.base_model.model.transformer.h[1].mlp.c_fc
    assert changed(two_adapters, lambda model: layer.scaling.update(second=9.0)) == {"adapters"}
    before = state_facts(two_adapters)
    with two_adapters.disable_adapter():
        disabled = state_facts(two_adapters)
    assert disabled["adapters"] != before["adapters"] and disabled["values_sha256"] == before["values_sha256"]
    assert state_facts(two_adapters) == before


def test_autocast_hooks_and_edits_that_are_on(gpt2):
    plain = state_facts(gpt2)
    assert (plain["autocast"], plain["hooks"], plain["adapters"]) == (None, [], None)
    with torch.autocast("cpu", torch.bfloat16):
        assert state_facts(gpt2) == plain | {"autocast": "bfloat16"}
    with sl.edits.steer_direction(gpt2, torch.ones(32), 1.0, hook_point="blocks.1.hook_resid_post"):
        assert any(hook.startswith("transformer.h.1: saelens_lite") for hook in state_facts(gpt2)["hooks"])
    handle = gpt2.transformer.h[0].register_forward_hook(print)
    assert state_facts(gpt2)["hooks"] == ["transformer.h.0: builtins.print"]
    handle.remove()
    assert state_facts(gpt2) == plain
