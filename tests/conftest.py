"""Fakes that the tests share, and the rule that a test is skipped only for a listed reason."""

import copy
import os
from pathlib import Path
from typing import NamedTuple

os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent

# No test waits for the disk: a kill loses nothing that was written. What a loss of power loses is played by
# harvest/shards/test_crash.py, and test_atomic.py sees what is synced. The descriptor has to be one, still.
os.fsync = os.fstat


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer of 259 tokens, made here: pad 0, BOS 1 (put before every text), EOS 2, and a token for each
    byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<|pad|>", "<|bos|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        padding_side="left",
    )


@pytest.fixture(scope="session")
def shared_gpt2():
    """What `gpt2` is a copy of; shared by the tests of a process, so leave it as it is."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def gpt2(shared_gpt2):
    """A GPT-2 with two layers of width 32, 64 positions, random weights and the vocabulary of
    `byte_tokenizer`."""
    torch.manual_seed(0)
    return copy.deepcopy(shared_gpt2)


class Planted(NamedTuple):
    """Rows made from known directions: acts = latent_acts @ directions.

    directions: float32[32 latents, 16], unit norm
    latent_acts: float32[8192, 32], 3 of 32 on in each row, values in [1, 2)
    acts: float32[8192, 16]
    """

    directions: Tensor
    latent_acts: Tensor
    acts: Tensor


@pytest.fixture(scope="session")
def planted() -> Planted:
    """A planted dictionary and rows made from it."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator), dim=1)
    on = torch.rand(8192, 32, generator=generator).topk(3).indices
    values = 1 + torch.rand(8192, 3, generator=generator)
    latent_acts = torch.zeros(8192, 32).scatter_(1, on, values)
    return Planted(directions, latent_acts, latent_acts @ directions)


@pytest.fixture(scope="session")
def embedded():
    """The embedded language model and its tokenizer; shared by the tests of a process, so leave it as it
    is."""
    from saelens_lite.demo.embedded import load_model

    return load_model()


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory):
    """A `forked.Python`: forked_python.run("-m", "saelens_lite.cli", …) as `python -m saelens_lite.cli …`
    would."""
    from .forked import Python

    python = Python(tmp_path_factory.mktemp("outputs"))
    yield python
    python.close()


@pytest.fixture
def torchrun():
    """torchrun(n, "-m", "saelens_lite.train", …): so many processes, as a `forked.Torchrun`."""
    from .forked import Torchrun

    return Torchrun


@pytest.fixture(params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def ranks(request):
    """As `torchrun`, but for processes that are forked with its environment; by torchrun itself among the
    slow tests."""
    if request.param == "torchrun":
        return request.getfixturevalue("torchrun")
    return request.getfixturevalue("forked_python").start_ranks


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and corpora beside the checkout, where there is one."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared data absent: expected ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def peer_python() -> Path:
    """The interpreter of the environment that has SAELens and sparsify."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists():
        pytest.skip("peer environment absent: make peers")
    return python


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.accelerator.is_available():
        pytest.skip("no accelerator")


class SkipPolicy:
    """Ends the run with the list of its skips, and fails it when one has a reason that tests/skips.txt does
    not list."""

    def __init__(self, listed: list[str]) -> None:
        self.listed = listed
        self.skips: list[tuple[str, str]] = []

    def note(self, report) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips.append((report.nodeid, reason.removeprefix("Skipped: ")))

    pytest_runtest_logreport = note
    pytest_collectreport = note

    def unlisted(self) -> list[tuple[str, str]]:
        return [(test, reason) for test, reason in self.skips if not reason.startswith(tuple(self.listed))]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session) -> None:
        if self.unlisted() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        for test, reason in self.skips:
            terminalreporter.write_line(f"skipped: {test}: {reason}")
        for test, reason in self.unlisted():
            terminalreporter.write_line(f"NOT LISTED in tests/skips.txt: {test}: {reason}", red=True)


def pytest_configure(config) -> None:
    if not hasattr(config, "workerinput"):  # the reports of pytest-xdist's workers arrive at their controller
        lines = (ROOT / "tests" / "skips.txt").read_text().splitlines()
        listed = [line.split("|")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
        config.pluginmanager.register(SkipPolicy(listed), "skip_policy")
