"""The model and tokenizer of a harvest: how they load, what identifies them, which layers it needs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from saelens_lite.device import chosen_device
from saelens_lite.distributed import own_device
from saelens_lite.lm import hooks
from saelens_lite.lm.decoder import Decoder

_FINGERPRINT_VALUES = 256
_VOLATILE_CONFIG = (
    "_name_or_path transformers_version torch_dtype dtype use_cache _attn_implementation_autoset".split()
)


def load_model(
    name: str,
    *,
    compute_dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A causal language model from a hub id or local folder, ready for inference on one device.

    raises: ValueError for a folder that does not exist
    """
    from transformers import AutoModelForCausalLM

    if (name.count("/") > 1 or name.startswith((".", "/"))) and not os.path.isdir(name):
        raise ValueError(f"model expected a hub id or an existing folder, got {name}")

    device = own_device(chosen_device(device))
    dtype = compute_dtype or ("float32" if device == "cpu" else "auto")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype, dtype), **options)
    return model.to(device).eval()


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer at a hub id or local folder. raises: ValueError if there is none"""
    from transformers import AutoTokenizer

    missing = (
        f"no tokenizer could be loaded from {name!r}: pass one as tokenizer= (an object, hub id or folder)"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(missing) from error
    # transformers 5 answers a folder without tokenizer files with an empty tokenizer of the model's kind
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:
        raise ValueError(missing)
    return tokenizer


class NoTokenizer:
    """In the place of a tokenizer where documents are token ids: no BOS, no separators, no special tokens."""

    bos_token_id = eos_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: Sequence[str], **_options: Any) -> NoReturn:
        raise ValueError(
            f"documents expected token ids, as there is no tokenizer, got text, {texts[0][:40]!r}: pass "
            "tokenizer="
        )


def drop_unused(model: nn.Module, points: Sequence[hooks.HookPoint]) -> None:
    """Free the layers above the deepest hook point and the head, of a model that nobody else uses."""
    if any(point.block is None for point in points):
        return
    del Decoder(model).layers[max(point.block for point in points) + 1 :]
    if model.get_output_embeddings() is not None:
        model.set_output_embeddings(nn.Identity())


def compile_blocks(model: nn.Module, points: Sequence[hooks.HookPoint]) -> None:
    """Compile the blocks of a model that nobody else uses, but for those with a hook point inside.

    Hooks on the block itself still see what goes in and out.
    """
    decoder = Decoder(model)
    for index, block in enumerate(decoder.layers):
        name = f"{decoder.path}.{index}"
        if not any(point.module_path.startswith(f"{name}.") for point in points):
            block.forward = torch.compile(block.forward, dynamic=False)


def positions_limit(model: nn.Module) -> int | None:
    """Longest context the model has positions for, in tokens; None if nothing states it.

    A table of positions stands beside the token embedding. Some begin behind an offset (OPT), or after the
    padding's number (RoBERTa).
    """
    decoder = Decoder(model)
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [stated] if stated and stated > 0 else []
    for owner in decoder.bare.modules():
        children = dict(owner.named_children())
        if not any(child is decoder.embedding for child in children.values()):
            continue
        for name, child in children.items():
            if isinstance(child, nn.Embedding) and ("pos" in name or name == "wpe"):
                before = 0 if child.padding_idx is None else child.padding_idx + 1
                limits.append(child.num_embeddings - before - getattr(child, "offset", 0))
    return min(limits, default=None)


def model_facts(model: nn.Module) -> dict[str, Any]:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE_CONFIG}
    return {
        "name": model.config.name_or_path or type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "config_sha256": _sha256(json.dumps(config, sort_keys=True, default=str)),
        "weights_sha256": weights_fingerprint(model),
        "attention": getattr(model.config, "_attn_implementation", None),
        "compute_dtype": str(Decoder(model).embedding.weight.dtype).removeprefix("torch."),
    }


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over the name, shape, dtype and first 256 values of every parameter.

    It is what older plans hold; model_state.py sees more.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta":
            values = parameter.detach().flatten()[:_FINGERPRINT_VALUES].cpu().contiguous()
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        rules = json.loads(backend.to_str())
        for changed_by_calls in ("truncation", "padding"):
            rules.pop(changed_by_calls, None)
    return {
        "name": getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__,
        "sha256": _sha256(json.dumps(rules, sort_keys=True)),
    }


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """How its calls read text, beside its rules."""
    return {"split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False))}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
