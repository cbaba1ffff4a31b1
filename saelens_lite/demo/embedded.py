"""The embedded language model: 2.4 million parameters, trained on Python's standard library.

`MODEL_DIR` is an ordinary Hugging Face folder; its README.md says what it is, how it was made and how well it
predicts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_DIR = Path(__file__).parent / "model"


def load_model() -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """The model in float32 and evaluation mode, and its tokenizer; reads only files of this package."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    return model.eval(), tokenizer
