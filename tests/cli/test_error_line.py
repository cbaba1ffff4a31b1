"""What goes wrong is one line: the machine's errors, the parser's, and outputs that cannot be written."""

import dataclasses
import io
import os
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from saelens_lite.cli import commands
from saelens_lite.cli.commands import COMMANDS, main
from saelens_lite.cli.error_line import TO_LOWER
from saelens_lite.cli.shared import device_named


def of_a_library(name, module):
    return type(name, (Exception,), {"__module__": module})


@pytest.fixture
def running(monkeypatch):
    """A function that makes the next command call another in place of its own."""

    def make(run):
        monkeypatch.setattr(commands, "import_module", lambda name: SimpleNamespace(run=run))

    return make


MEMORY = "not enough memory on this machine or device: lower --batch-size-rows, --buffer-rows, or --d-sae or"
LOST = "a kernel broke this process's CUDA context, so nothing can go on in it: run again with SAELENS_LITE"
PEER = "another process of this run has died or cannot be reached; its own last line says why."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"), MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"), MEMORY),
        (RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904, 16]"), MEMORY),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), MEMORY),
        (MemoryError(), MEMORY),
        (RecursionError("maximum recursion depth exceeded"), "expected data of ordinary depth"),
        (OverflowError("cannot convert float infinity to integer"), "cannot convert float infinity to"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]"), PEER),
        (RuntimeError("Failed to find C compiler."), "Failed to find C compiler."),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), LOST),
        (SafetensorError("Error while deserializing"), "Error while deserializing (safetensors"),
        (of_a_library("UsageError", "wandb.errors")("no project a/b"), "no project a/b (wandb UsageError)"),
        (of_a_library("Bad", "saelens_lite.errors")("a\n b"), "a b"),
        (EOFError("Compressed file ended before"), "Compressed file ended before"),
    ],
)
def test_what_the_machine_or_a_library_refuses_is_one_line_and_2(error, line, running, capsys):
    def fail(argv):
        raise error

    running(fail)
    assert main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"saelens-lite: {line}") and err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("shards"), TypeError("x"), AttributeError("x"), AssertionError()])
def test_a_fault_of_this_program_keeps_its_traceback(error, running):
    def fail(argv):
        raise error

    running(fail)
    with pytest.raises(type(error)):
        main(["train"])


@pytest.mark.parametrize("command", [command for command in TO_LOWER if command != "demo"])
def test_what_is_to_be_lowered_are_flags_of_the_command(command):
    module = import_module(f"saelens_lite.cli.{command.replace('-', '_')}")
    of = [dataclasses.fields(cls) for cls in vars(module).values() if dataclasses.is_dataclass(cls)]
    names = {field.name for fields in of for field in fields}
    for word in TO_LOWER[command].replace(",", "").split():
        assert word == "or" or word.removeprefix("--").replace("-", "_") in names


def test_a_field_of_a_configuration_is_named_as_its_flag(capsys):
    assert main(["train", "--store", "s", "--k", "3", "--n-steps", "0"]) == 2
    assert capsys.readouterr().err.startswith("saelens-lite: --n-steps expected at least 1 or None, got 0")


HELP = "; saelens-lite {} --help lists its flags"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("train --expantion 8", "train has no flag --expantion (did you mean '--expansion'?)" + HELP),
        ("train --no-overwrit", "train has no flag --no-overwrit (did you mean '--overwrite'?)" + HELP),
        ("train --xyzzy=3", "train has no flag --xyzzy" + HELP),
        ("train --k x", "--k expected a number, got 'x'" + HELP),
        ("train --lr", "missing value for argument '--lr'. Expected 1 values" + HELP),
        ("evaluate", "evaluate needs STORE and SAE" + HELP),
        ("verify", "verify needs STORE" + HELP),
        ("add-hook-points", "add-hook-points needs STORE and HOOK_POINTS" + HELP),
        ("analyze a b c", "expected STORE SAE before the flags, got a b c"),
        ("convert a", "convert needs OUTPUT and --to" + HELP),
        ("demo stray", "unrecognized options: stray" + HELP),
        ("search i --latent 3 --label", "missing value for argument '--label'. Expected 1 values" + HELP),
    ],
)
def test_a_mistake_in_what_was_typed_is_one_line_and_2(typed, line, capsys):
    assert main(typed.split()) == 2
    assert capsys.readouterr().err == f"saelens-lite: {line.format(typed.split()[0])}\n"


# Outputs that cannot be written ----------------------------------------------------------------------


def test_characters_that_stdout_has_not_become_escapes(running, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    running(lambda argv: print("ΔCE 0.25 nats, é"))
    assert main(["evaluate"]) == 0
    assert written.getvalue() == b"\\u0394CE 0.25 nats, \xe9\n"


def unread(*argv, stream="stdout"):
    """(exit code, the other stream) of a command one of whose outputs nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writer}
    done = subprocess.run([sys.executable, *argv], **pipes, text=True)
    os.close(writer)
    return done.returncode, done.stderr if stream == "stdout" else done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["verify", "--help"]])
def test_a_reader_that_stops_early_ends_a_command_quietly(argv):
    assert unread("-m", "saelens_lite.cli", *argv) == (0, "")


WORK = """
import logging, sys
from types import SimpleNamespace
from saelens_lite.cli import commands
def run(argv):
    for line in range(3):
        logging.getLogger("saelens_lite").info("on the way")
        sys.stderr.write("bar")
    open(sys.argv[1], "w").write("done")
    print("made it")
commands.import_module = lambda name: SimpleNamespace(run=run)
sys.exit(commands.main(["train"]))
"""


def test_the_work_goes_on_where_nobody_reads_its_progress(tmp_path):
    assert unread("-c", WORK, str(tmp_path / "out"), stream="stderr") == (0, "made it\n")
    assert (tmp_path / "out").read_text() == "done"
    code, err = unread("-c", WORK, str(tmp_path / "out"))
    assert code == 0 and err.count("on the way") == 3


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (device_named(None), device_named("cuda:0"), device_named("cpu")) == ("cuda:1", "cuda:0", "cpu")


def test_every_command_is_known_to_the_overview():
    assert {*TO_LOWER} < {*COMMANDS}
