"""A harvest that is stopped at any instant: by power loss, a kill, a full disk; and run again, ends with the
same bytes.

Power loss is simulated at every call that changes the disk, in the harsh reading of POSIX: what was not
synced may be cut short, names that were not synced may never have appeared. Kills are real SIGKILLs of
another process.
"""

import contextlib
import errno
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from saelens_lite import atomic
from saelens_lite.errors import ShardError
from saelens_lite.store import folder
from saelens_lite.store.verify import verify_store

from ..conftest import BOTH
from ..test_harvest import content

SMALL = {"max_tokens": 420, "documents_per_shard": 8}
"""Two shards; the second has more rows than are asked for."""


class PowerLoss(BaseException):
    """What no cleanup may survive."""


class Disk:
    """The disk below atomic.py and store/folder.py: counts the calls that change it, and fails at one of
    them.

    root: the store's folder
    fail_at: number of the call that fails, from 0; None never fails
    full: that call raises ENOSPC and all goes on; otherwise it is where the power is gone
    seed: chooses what is lost then of all that was not synced
    """

    def __init__(self, root: Path, fail_at: int | None = None, full: bool = False, seed: int = 0):
        self.root, self.fail_at, self.full = root, fail_at, full
        self.calls: list[tuple[str, str]] = []
        self.dead = False
        self._rng = random.Random(f"{seed} {fail_at}")
        self._synced: dict[int, int] = {}  # bytes of each file (inode) that are on the disk for certain
        self._names: dict[Path, list] = {}  # by folder: how to undo the changes of names that it did not sync
        self._open: list = []

    @contextlib.contextmanager
    def mounted(self, monkeypatch):
        for path in self.root.rglob("*"):
            self._synced[path.stat().st_ino] = path.stat().st_size
        real_mkdir, real_unlink = pathlib.Path.mkdir, pathlib.Path.unlink

        def mkdir(path, *args, **options):
            if path.is_dir():  # as filelock asks for the folder of its file: nothing changes
                return real_mkdir(path, *args, **options)
            self.call("mkdir", path)
            real_mkdir(path, *args, **options)
            self._changed(path.parent, lambda: shutil.rmtree(path, ignore_errors=True))

        def unlink(path, *args, **options):
            self.call("unlink", path)
            real_unlink(path, *args, **options)

        system = types.SimpleNamespace(**vars(os))
        system.fsync, system.replace = self.fsync, self.replace
        with monkeypatch.context() as patch:
            for module in (atomic, folder):
                patch.setattr(module, "os", system)
                patch.setattr(module, "open", self.open, raising=False)
            patch.setattr(
                pathlib.Path, "mkdir", lambda p, *a, **o: (mkdir if self.holds(p) else real_mkdir)(p, *a, **o)
            )
            patch.setattr(
                pathlib.Path,
                "unlink",
                lambda p, *a, **o: (unlink if self.holds(p) else real_unlink)(p, *a, **o),
            )
            yield
        for file in self._open:
            file.close()
        if self.dead:
            self.lose_what_was_not_synced()

    def holds(self, path) -> bool:
        return Path(path).is_relative_to(self.root)

    def call(self, kind: str, path) -> None:
        if self.dead:
            raise PowerLoss
        self.calls.append((kind, Path(path).relative_to(self.root.parent).as_posix()))
        if len(self.calls) - 1 == self.fail_at:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.dead = True
            raise PowerLoss

    def open(self, path, mode="r"):
        if not self.holds(path) or mode == "rb":
            return open(path, mode)
        self.call("open", path)
        path = Path(path)
        is_new = not path.exists()
        if is_new:
            self._changed(path.parent, lambda: path.unlink(missing_ok=True))
        file = File(open(path, mode, buffering=0), self, path)  # noqa: SIM115
        if is_new or "w" in mode:
            self._synced[path.stat().st_ino] = 0
        self._open.append(file)
        return file

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.call("fsync", path)
        if path.is_dir():
            self._names.pop(path, None)
        else:
            self._synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    def replace(self, source, target) -> None:
        self.call("replace", target)
        source, target = Path(source), Path(target)
        before = target.read_bytes() if target.exists() else None
        os.replace(source, target)

        def undo():
            if target.exists():
                os.replace(target, source)
            if before is not None:
                target.write_bytes(before)
                self._synced[target.stat().st_ino] = len(before)

        self._changed(target.parent, undo)

    def _changed(self, folder: Path, undo) -> None:
        self._names.setdefault(folder, []).append(undo)

    def lose_what_was_not_synced(self) -> None:
        """Each change of a name, and any part of a file's end, may be gone."""
        for undos in self._names.values():
            for undo in reversed(undos):
                if self._rng.random() < 0.5:
                    undo()
        for path in self.root.rglob("*"):
            if path.is_file() and path.stat().st_size > (synced := self._synced.get(path.stat().st_ino, 0)):
                os.truncate(path, self._rng.randint(synced, path.stat().st_size))


class File:
    """A file whose every write reaches the disk as one call."""

    def __init__(self, file, disk: Disk, path: Path):
        self._file, self._disk, self._path = file, disk, path

    def write(self, data) -> int:
        self._disk.call("write", self._path)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def calls_of(harvest, monkeypatch, tmp_path) -> list[tuple[str, str]]:
    """(kind, file) of every call of an uninterrupted harvest that changes the disk; its store is
    "counted"."""
    disk = Disk(tmp_path / "counted")
    with disk.mounted(monkeypatch):
        harvest(store="counted", **SMALL)
    return disk.calls


# power loss


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_power_lost_at_any_call_loses_nothing(harvest, monkeypatch, tmp_path, seed):
    calls = calls_of(harvest, monkeypatch, tmp_path)
    whole = content(tmp_path / "counted")
    assert {kind for kind, _ in calls} == {"open", "write", "fsync", "replace", "mkdir"}
    assert {Path(file).name.removesuffix(".tmp") for _, file in calls} >= {Path(name).name for name in whole}
    for i in range(len(calls)):
        disk = Disk(tmp_path / "store", fail_at=i, seed=seed)
        with disk.mounted(monkeypatch), pytest.raises(PowerLoss):
            harvest(**SMALL)
        assert disk.calls == [(kind, file.replace("counted", "store")) for kind, file in calls[: i + 1]]
        if (tmp_path / "store/plan.json").exists():
            assert [str(p) for p in verify_store(tmp_path / "store") if not p.file.startswith("log")] == [], (
                calls[i]
            )
        harvest(**SMALL)
        assert content(tmp_path / "store") == whole, calls[i]
        shutil.rmtree(tmp_path / "store")


@pytest.mark.long
def test_power_lost_again_and_again(harvest, monkeypatch, tmp_path):
    """Each attempt dies a little later than the one before, all in one store."""
    calls = calls_of(harvest, monkeypatch, tmp_path)
    for i in range(len(calls)):
        with Disk(tmp_path / "store", fail_at=i).mounted(monkeypatch):
            with contextlib.suppress(PowerLoss):
                harvest(**SMALL)
    harvest(**SMALL)
    assert content(tmp_path / "store") == content(tmp_path / "counted")


# kills


FORK_SERVER = """
import json, os, signal, sys, time
os.fsync = os.fstat  # as in tests/conftest.py
sys.path.insert(0, sys.argv[1])
import torch
from saelens_lite import atomic
from saelens_lite.harvest import HarvestConfig, run_harvest
torch.set_num_threads(1)
options = json.loads(sys.argv[2])
run_harvest(HarvestConfig(**options))  # whatever a harvest loads is loaded once, here
print(flush=True)

def killed_at(name):
    replace, atomic.os = os.replace, type(sys)("os")
    vars(atomic.os).update(vars(os))
    def kill(source, target):
        if str(target).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    atomic.os.replace = kill

for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        if order.get("killed_at"):
            killed_at(order["killed_at"])
        code = 1
        try:
            run_harvest(HarvestConfig(**(options | order["options"])))
            code = 0
        finally:
            os._exit(code)
    plan = order["options"]["store"] + "/plan.json"
    while not os.path.exists(plan) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.0002)
    began = time.perf_counter()
    if order.get("after_s") is not None:
        time.sleep(order["after_s"])
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    report = {"status": status, "seconds": time.perf_counter() - began, "peak_bytes": 1024 * usage.ru_maxrss}
    print(json.dumps(report), flush=True)
"""


@pytest.fixture
def forked(gpt2, byte_tokenizer, tmp_path):
    """forked(store, after_s=None, killed_at=None, **options): a harvest by names in a process of its own.

    after_s: it is killed so many seconds after its plan is there; killed_at: before a file of that name
        appears
    returns: its wait status, seconds (from the plan on), peak_bytes
    """
    gpt2.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text(
        "".join(f"Story {i}: {'the sun and the moon. ' * (1 + i % 7)}\n" for i in range(200))
    )
    settings = {
        "model": str(tmp_path / "model"),
        "dataset": [str(tmp_path / "texts.txt")],
        "hook_points": BOTH,
        "store": str(tmp_path / "whole"),
        "max_tokens": 2_500,
        "context_length": 64,
        "batch_size_seqs": 2,
        "documents_per_shard": 8,
        "device": "cpu",
        "progress": False,
    }
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", FORK_SERVER, str(root), json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    assert process.stdout.readline() == "\n", "the first harvest failed"

    def run(store, after_s=None, killed_at=None, **options):
        order = {
            "options": {"store": str(tmp_path / store), **options},
            "after_s": after_s,
            "killed_at": killed_at,
        }
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("n_kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_instant_loses_nothing(forked, tmp_path, n_kills):
    """Before the plan, the first commit and the manifest appear; and spread over the time from the plan to
    the end."""
    done = forked("forked")
    assert done["status"] == 0
    whole, store = content(tmp_path / "whole"), tmp_path / "store"
    at_files = [{"killed_at": name} for name in ("plan.json", f"{BOTH[0]}.json", "manifest.json")]
    n_spread = n_kills - len(at_files)
    for kill in at_files + [{"after_s": done["seconds"] * (i + 0.5) / n_spread} for i in range(n_spread)]:
        while (status := forked("store", **kill)["status"]) == 0 and "after_s" in kill:
            kill["after_s"] *= 0.8  # it ended before
            shutil.rmtree(store)
        assert status == 9
        if kill != at_files[0]:
            assert verify_store(store) == []
        assert forked("store")["status"] == 0
        assert content(store) == whole
        shutil.rmtree(store)


# a full disk


@pytest.mark.long
def test_a_full_disk_at_any_call_is_a_clear_error(harvest, monkeypatch, tmp_path):
    """But for the log, whose lines may be lost."""
    calls = calls_of(harvest, monkeypatch, tmp_path)
    whole = content(tmp_path / "counted")
    for i in (i for i, (kind, _) in enumerate(calls) if kind in ("write", "fsync", "mkdir")):
        with Disk(tmp_path / "store", fail_at=i, full=True).mounted(monkeypatch):
            if "log.jsonl" in calls[i][1]:
                harvest(**SMALL)
            else:
                with pytest.raises(
                    ShardError, match="could not be written: No space left on device.*make room"
                ):
                    harvest(**SMALL)
        left = content(tmp_path / "store")
        assert all(whole[name] == data for name, data in left.items()), calls[i]
        assert not left or verify_store(tmp_path / "store") == []
        harvest(**SMALL)
        assert content(tmp_path / "store") == whole, calls[i]
        shutil.rmtree(tmp_path / "store")


def test_a_disk_that_is_really_full(harvest, tmp_path):
    """64 KB for a store of 130 KB; then there is room."""
    whole = content(harvest(store="whole").path)
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "disk"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted: mounting is not permitted here")
    try:
        with pytest.raises(ShardError, match="expected room for 1,000 rows"):
            harvest(store="disk/store")
        with pytest.raises(ShardError, match="could not be written: No space left on device"):
            harvest(store="disk/store", check_space=False)
        assert verify_store(tmp_path / "disk/store") == []
        subprocess.run(["mount", "-o", "remount,size=16m", tmp_path / "disk"], check=True)
        assert content(harvest(store="disk/store").path) == whole
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


# memory


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_harvest(forked, tmp_path):
    """Ten times the tokens, 102 MB of rows in place of 10 MB, and less than 10 % more memory."""
    (tmp_path / "long.txt").write_text(
        "".join(f"Story {i}: {'the sun and the moon. ' * (1 + i % 7)}\n" for i in range(1250))
    )
    kinds = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    options = {
        "dataset": [str(tmp_path / "long.txt")],
        "hook_points": [f"blocks.{i}.{kind}" for i in range(2) for kind in kinds],
        "batch_size_seqs": 16,
        "documents_per_shard": 16,
        "dtype": "float32",
    }
    peaks = {}
    for n_tokens in (10_000, 100_000):
        done = forked(f"of_{n_tokens}", max_tokens=n_tokens, **options)
        assert done["status"] == 0
        peaks[n_tokens] = done["peak_bytes"]
        shutil.rmtree(tmp_path / f"of_{n_tokens}")
    assert peaks[100_000] < 1.1 * peaks[10_000], peaks
