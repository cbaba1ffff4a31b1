"""Trainings that are killed: within this process, or for real in one of their own, forked from one that has
all loaded."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.runs.run import Run

SERVER = """
import json, os, pkgutil, sys
os.fsync = os.fstat  # as in tests/conftest.py
import torch
import saelens_lite as sl
from saelens_lite.train import train_grid, train_sae

torch.set_num_threads(1)
store, options = sl.ActivationStore(sys.argv[1]), json.loads(sys.argv[2])
# What a training loads is loaded once, here.
train_sae(store, **(options | {"n_steps": 1, "output": sys.argv[3]}))

def signalled(function, number, nth):
    owner, _, name = function.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, calls = getattr(owner, name), []
    def counted(*args, **kwargs):
        calls.append(0)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    setattr(owner, name, counted)

for order in map(json.loads, sys.stdin):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if order["at"]:
                signalled(*order["at"])
            fields, grid = options | order["fields"], order["grid"]
            train_sae(store, **fields) if grid is None else train_grid(store, grid, **fields)
            code = 0
        except SystemExit as stop:
            code = stop.code
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """fork_server(store, options, grid=None): a context that gives forked(output, at=(function, signal, nth),
    **fields).

    That trains one SAE, or those of a grid, and returns the exit code; the process gets the signal when the
    function is called for the nth time.
    """

    @contextmanager
    def served(store, options, grid=None):
        command = [
            sys.executable,
            "-c",
            SERVER,
            str(store.path),
            json.dumps(options),
            str(tmp_path_factory.mktemp("warm")),
        ]
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.DEVNULL,
            "text": True,
        }
        with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:

            def forked(output, at=None, **fields):
                order = {"fields": {"output": str(output), **fields}, "grid": grid, "at": at}
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                return int(process.stdout.readline())

            yield forked
            process.stdin.close()

    return served


class _Killed(BaseException):
    """Ends a run as a kill would: nothing catches it."""


@pytest.fixture
def killed_before(monkeypatch):
    """killed_before(step): a context in which a run is ended before that step, counted from 0, as it must
    be."""
    update = Trainer.update

    @contextmanager
    def killed_before(step):
        def killed(self, acts):
            if self.steps_done == step:
                raise _Killed
            return update(self, acts)

        with monkeypatch.context() as patch, pytest.raises(_Killed):
            patch.setattr(Trainer, "update", killed)
            yield

    return killed_before


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(step): trainings of this process get SIGTERM after that step, until monkeypatch.undo()."""
    after_step = Run.after_step

    def stop_after(step):
        def stopped(self, stats):
            after_step(self, stats)
            if self.steps_done == step:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Run, "after_step", stopped)

    return stop_after
