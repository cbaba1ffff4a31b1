"""Processes of Python that start in milliseconds: each is forked from one that has loaded torch, transformers
and what commands load, which takes a fresh interpreter five seconds of a core.

`Python.start` takes the arguments that follow `python` on a command line; `Python.start_ranks` starts several
as torchrun does: with its environment and its store of keys, and when one fails the others are ended.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SERVER = """
import atexit, importlib, json, os, runpy, signal, sys, traceback

os.fsync = os.fstat  # as in conftest.py

answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDWR), 1)
for name in json.loads(sys.argv[1]):
    module, _, attribute = name.partition(":")
    loaded = importlib.import_module(module)
    attribute and getattr(loaded, attribute)
sys.path[:] = [entry for entry in sys.path if entry]

def run(argv):
    if argv[0] == "-c":
        sys.argv, sys.path = ["-c", *argv[2:]], ["", *sys.path]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif argv[0] == "-m":
        sys.argv, sys.path = argv[1:], [os.getcwd(), *sys.path]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path = list(argv), [os.path.dirname(argv[0]), *sys.path]
        runpy.run_path(argv[0], run_name="__main__")

def begin(order):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, order["stdout"]), (2, order["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    answers.close()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:0] = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    code, interrupted = 0, False
    try:
        run(order["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:  # an interpreter that nobody caught it in dies by it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)

for order in map(json.loads, sys.stdin):
    if "argv" in order:
        answer = os.fork()
        if not answer:
            begin(order)
    else:
        pid, status = os.waitpid(order["wait"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), file=answers, flush=True)
"""
LOADED = [
    "torch",
    "torch.distributed",
    "transformers:GPT2LMHeadModel",
    "transformers:AutoModelForCausalLM",
    "transformers:PreTrainedTokenizerFast",
    "saelens_lite:harvest_activations",
    "saelens_lite:train_sae",
    "saelens_lite:train_grid",
    "saelens_lite:index_features",
    "saelens_lite:feature_page",
    "saelens_lite.harvest.config",
    "saelens_lite.train.grid",
    "saelens_lite.cli.commands",
]


class Process:
    """A started process, with what tests use of subprocess.Popen; its output is kept in files."""

    def __init__(self, pid, waited, stdout, stderr):
        self.pid, self._waited, self.stdout, self.stderr, self.returncode = pid, waited, stdout, stderr, None

    def poll(self):
        if self.returncode is None:
            self.returncode = self._waited(self.pid)
        return self.returncode

    def wait(self, timeout=120):
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"process {self.pid} took more than {timeout} s: {self.output()}")
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def output(self):
        """(standard output, standard error) so far."""
        return self.stdout.read_text(), self.stderr.read_text()

    def communicate(self, timeout=120):
        self.wait(timeout)
        return self.output()


class Ranks:
    """The processes of `Python.start_ranks` as one: ended as soon as one fails, and stopped together."""

    def __init__(self, processes, store):
        self.processes, self._store = processes, store

    def pid(self, rank):
        return self.processes[rank].pid

    def poll(self):
        codes = [process.poll() for process in self.processes]
        if any(codes) and None in codes:
            for process in self.processes:
                process.kill()
        return None if None in codes else next(filter(None, codes), 0)

    def send_signal(self, number):
        for process in self.processes:
            process.send_signal(number)

    def communicate(self, timeout=120):
        """(the exit code of one that failed or 0, all that the processes printed)."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"took more than {timeout} s: {[p.output() for p in self.processes]}")
            time.sleep(0.005)
        return code, "".join("".join(process.output()) for process in self.processes)


class Torchrun:
    """What `Ranks` is, by torchrun itself."""

    def __init__(self, n, *argv):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--standalone"]
        self._process = subprocess.Popen(
            [*command, *map(str, argv)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.poll, self.send_signal = self._process.poll, self._process.send_signal

    def pid(self, rank):
        """None as long as that process has not begun."""
        for children in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                with contextlib.suppress(OSError):
                    if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                        return int(child)
        return None

    def communicate(self, timeout=180):
        output, _ = self._process.communicate(timeout=timeout)
        return self._process.returncode, output


class Python:
    """An interpreter that has all loaded and is forked.

    folder: where the outputs of the processes are kept
    """

    def __init__(self, folder):
        self._folder, self._n = Path(folder), 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(LOADED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **order):
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, *argv, cwd=None, env=None):
        """`python ARGV` in a process of its own.

        env: the whole environment; left out, that of this process
        """
        self._n += 1
        stdout, stderr = (self._folder / f"{self._n}.{name}" for name in ("out", "err"))
        order = {"cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        pid = self._ask(argv=list(map(str, argv)), stdout=str(stdout), stderr=str(stderr), **order)
        return Process(pid, lambda pid: self._ask(wait=pid), stdout, stderr)

    def run(self, *argv, cwd=None, env=None, timeout=120):
        """(exit code, standard output, standard error) of `python ARGV`."""
        process = self.start(*argv, cwd=cwd, env=env)
        output = process.communicate(timeout)
        return process.returncode, *output

    def start_ranks(self, n, *argv):
        """`torchrun --nproc-per-node N ARGV`."""
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        common |= {"TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": "1"}
        ranks = [
            self.start(*argv, env=os.environ | common | {"RANK": str(r), "LOCAL_RANK": str(r)})
            for r in range(n)
        ]
        return Ranks(ranks, store)

    def close(self):
        self._server.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(10)
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()
