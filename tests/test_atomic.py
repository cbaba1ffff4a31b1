"""Files and folders appear whole or not at all, each step on the disk before the next."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from saelens_lite import atomic

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What reaches the disk, in order: (call, path relative to tmp_path)."""
    made, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        made.append(("fsync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)))
        fsync(descriptor)

    def replaced(source, target):
        made.append(("replace", os.path.relpath(target, tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return made


def test_a_file_is_synced_then_named_then_its_folder_is_synced(tmp_path, calls):
    with atomic.appearing_file(tmp_path / "a/b.html") as file:
        file.write("é".encode())
    assert (tmp_path / "a/b.html").read_bytes() == b"\xc3\xa9"
    assert calls == [
        ("fsync", "."),  # the folder a has its name
        ("fsync", "a/b.html.tmp"),
        ("replace", "a/b.html"),
        ("fsync", "a"),
    ]
    assert os.listdir(tmp_path / "a") == ["b.html"]


def test_a_file_whose_writing_fails_leaves_the_one_before(tmp_path):
    atomic.write_file(tmp_path / "a", b"before")
    with pytest.raises(KeyError), atomic.appearing_file(tmp_path / "a") as file:
        file.write(b"after")
        raise KeyError
    assert (os.listdir(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"before")


def test_a_folder_appears_with_all_its_files_synced(tmp_path, calls):
    (tmp_path / ".x.tmp").mkdir()
    (tmp_path / ".x.tmp/left by a kill").touch()
    with atomic.appearing_folder(tmp_path / "x") as staged:
        (staged / "a").write_bytes(b"1")
        assert not (tmp_path / "x").exists()
    assert calls == [("fsync", ".x.tmp/a"), ("fsync", ".x.tmp"), ("replace", "x"), ("fsync", ".")]
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "x")) == (["x"], ["a"])


def test_a_folder_replaces_the_one_before_only_when_it_is_whole(tmp_path):
    for content in (b"1", b"2"):
        with atomic.appearing_folder(tmp_path / "x") as staged:
            (staged / "a").write_bytes(content)
    with pytest.raises(KeyError), atomic.appearing_folder(tmp_path / "x") as staged:
        (staged / "a").write_bytes(b"3")
        raise KeyError
    assert (os.listdir(tmp_path), (tmp_path / "x/a").read_bytes()) == (["x"], b"2")


def test_a_folder_is_discarded_under_a_hidden_name_first(tmp_path, calls):
    (tmp_path / "x/y").mkdir(parents=True)
    atomic.discard(tmp_path / "x")
    assert (os.listdir(tmp_path), calls) == ([], [("replace", ".x.old"), ("fsync", ".")])


def test_where_folders_are_no_files_only_files_are_synced(tmp_path, calls, monkeypatch):
    """As on Windows, where os.open refuses a folder."""
    monkeypatch.setattr(atomic.os, "name", "nt")
    folder, file = tmp_path, tmp_path / "a"
    file.touch()
    atomic.sync(folder)
    atomic.sync(file)
    assert calls == [("fsync", "a")]


SIGNALLED = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from saelens_lite.atomic import temporary_folder
with temporary_folder() as folder:
    (folder / "rows").write_text("x")
    os.kill(os.getpid(), int(sys.argv[2]))
    import time; time.sleep(30)
"""


def test_a_temporary_folder_goes_after_sigterm_and_after_a_kill_with_the_next_one(tmp_path, monkeypatch):
    def run(number):
        command = [sys.executable, "-c", SIGNALLED, str(tmp_path), str(int(number))]
        return subprocess.run(command, cwd=ROOT, timeout=60).returncode

    assert run(signal.SIGTERM) == 128 + signal.SIGTERM and os.listdir(tmp_path) == []
    assert run(signal.SIGKILL) == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    (tmp_path / "saelens_lite-folder-of-mine").write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with atomic.temporary_folder():
        assert left.exists()  # one as new may not be locked yet
    os.utime(left, (0, 0))
    with atomic.temporary_folder() as one:
        os.utime(one, (0, 0))
        assert not left.exists()
        with atomic.temporary_folder() as other:
            assert one.exists() and one != other
    assert os.listdir(tmp_path) == ["saelens_lite-folder-of-mine"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
