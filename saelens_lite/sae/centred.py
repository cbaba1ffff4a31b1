"""SAEs of a TransformerLens model whose writing weights were centred, read from the plain model.

`center_writing_weights=True` takes from everything that is written to the residual stream its mean over
d_model. In a model with LayerNorm that changes no output, and the stream there is x - mean(x) of the plain
one: so the SAE reads x - mean(x), and mean(x) is added to what it gives, exactly. attn_out and mlp_out are
written to the stream, and likewise. What lies inside attention and MLP, after a norm, is the same in both.
TransformerLens leaves a model with RMSNorm as it is. `fold_ln` and `center_unembed` leave all these places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LAYER_NORM = re.compile(
    r"(distil)?gpt2|stanford-gpt2|gpt-(neo|j)|pythia|opt-|bloom|gelu-|solu-|tiny-?stories|santacoder"
)
_RMS_NORM = re.compile(r"(meta-|tiny|code-?)?llama|mi[sx]tral|gemma|qwen|deepseek|vicuna|smollm|yi-")
_WRITTEN = re.compile(r"hook_(resid_(pre|mid|post)|attn_out|mlp_out)")
_INSIDE = re.compile(r"attn\.hook_z|mlp\.hook_(pre|post|in)")
_INSIDE_CHANGED = ("fold_value_biases", "refactor_factored_attn_matrices")


def normalisation(metadata: Mapping[str, Any], told: str, where: str) -> str:
    """What is done to every row of the plain model, given what the SAE itself does.

    metadata: of SAELens: hook_name, model_name, model_from_pretrained_kwargs; told: normalize_activations
    raises: ValueError where the plain model's activations do not say what the SAE was trained on
    """
    options = metadata.get("model_from_pretrained_kwargs") or {}
    if not isinstance(options, Mapping):
        return told
    place = re.sub(r"^blocks\.\d+\.", "", str(metadata.get("hook_name") or ""))
    model = str(metadata.get("model_name") or "")
    changed = [name for name in _INSIDE_CHANGED if options.get(name)]
    if changed and _INSIDE.fullmatch(place):
        raise ValueError(
            f"{where}: trained at {place} of a model loaded with {', '.join(changed)}, which changes what is "
            "there: the plain model has no such activations; choose an SAE of the stream"
        )
    if not options.get("center_writing_weights") or _INSIDE.fullmatch(place):
        return told
    family = model.rpartition("/")[2].lower()
    if _RMS_NORM.match(family):
        return told
    if not _LAYER_NORM.match(family):
        raise ValueError(
            f"{where}: trained on {model or 'a model without name'} with center_writing_weights, which means "
            "x - mean(x) where the model has LayerNorm and nothing where it has RMSNorm; of this model it is "
            "not known here which. Set model_from_pretrained_kwargs in cfg.json by what it has"
        )
    if not _WRITTEN.fullmatch(place) or told not in ("none", "layer_norm"):
        raise ValueError(
            f"{where}: trained with center_writing_weights at {place or 'no hook point'} with "
            f"normalize_activations {told!r}: how the plain model's activations become these is known for "
            "the stream, attn_out and mlp_out without normalisation or with layer_norm"
        )
    return "center" if told == "none" else told
