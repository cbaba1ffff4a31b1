"""The embedded language model: 2.4 million parameters, trained on Python's standard library.

`MODEL_DIR` holds it as an ordinary Hugging Face folder (see its README.md for what it is and how well it
predicts and how it was made); `corpus` reads the text that it was trained on.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_DIR = Path(__file__).parent / "model"


def load_model() -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """The embedded model in float32 and evaluation mode, and its tokenizer; reads only files of this
    package."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    return model.eval(), tokenizer
