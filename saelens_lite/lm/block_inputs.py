"""Where a block's attention and MLP take in what they work on: the places of attn.hook_z and mlp.hook_in.

Both are found in the forward of three tokens that decoder.py runs, by what modules took and gave there. The
output projection is the module whose output is the attention's, and whose input is neither that output (a
dropout) nor the attention's own input (a wrapper). The MLP is the one part of the block beside the attention
that holds matrices and is not called on another such part: OPT's fc1, before its fc2.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """Modules of a block whose inputs are hook points."""

    z: str | None = None
    """path inside the block of the attention's output projection: "self_attn.o_proj"; None without one"""
    mlp: str | None = None
    """name inside the block of the first part of the MLP; None where none is the only one"""


class AttentionSeen:
    """What the modules inside a block's attention took and gave in one forward."""

    def __init__(self, attention: nn.Module) -> None:
        self._attention = attention
        self._calls: dict[str, tuple[Tensor, Tensor]] = {}

    def handles(self) -> list[Any]:
        """Hooks that note it."""
        return [
            module.register_forward_hook(self._noting(path))
            for path, module in self._attention.named_modules()
            if path and _has_matrix(module)
        ]

    def _noting(self, path: str) -> Any:
        def hook(_module: nn.Module, args: tuple, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self._calls[path] = (args[0].clone(), output.clone())

        return hook

    def projection(self, given: Tensor | None, gave: Tensor) -> str | None:
        """Path inside the attention of its output projection, the outermost where one holds another (LoRA).

        given, gave: what the attention was called on, and its output
        """
        found = [
            path
            for path, (taken, given_on) in self._calls.items()
            if same_values(given_on, gave) and not same_values(taken, gave) and not same_values(taken, given)
        ]
        return min(found, key=lambda path: path.count("."), default=None)


def mlp_entry(parts: Mapping[str, nn.Module], attention: Set[str], follows: Mapping[str, str]) -> str | None:
    """The first part of the MLP.

    parts: those of a block that ran, by name; attention: names of those that are attention
    follows: part → the part whose output it was called on
    """
    matrices = {name for name, part in parts.items() if name not in attention and _has_matrix(part)}

    def before(name: str) -> set[str]:
        found: set[str] = set()
        while (name := follows.get(name, "")) and name not in found:
            found.add(name)
        return found

    entries = [name for name in matrices if not before(name) & matrices]
    return entries[0] if len(entries) == 1 else None


def _has_matrix(module: nn.Module) -> bool:
    return any(tensor.ndim > 1 for tensor in chain(module.parameters(), module.buffers()))


def same_values(one: Tensor, other: Tensor | None) -> bool:
    """Equal number for number, whatever the shape; NaN equals NaN."""
    if other is None or one.numel() != other.numel():
        return False
    one, other = one.detach().to(other.device, other.dtype).flatten(), other.flatten()
    return one.allclose(other, rtol=0, atol=0, equal_nan=True)
