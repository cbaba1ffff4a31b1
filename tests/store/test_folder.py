"""Folders: local, and behind fsspec's memory and local protocols; every operation the same on each."""

import errno
import fcntl
import os
import subprocess
import sys
import uuid

import pytest

from saelens_lite.errors import ShardError
from saelens_lite.store.folder import LocalFolder, RemoteFolder, open_folder


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELENS_LITE_CACHE", str(tmp_path / "cache"))
    return open_folder(
        {
            "local": str(tmp_path / "a store"),
            "file": f"file://{tmp_path}/a%20store",
            "memory": f"memory://{uuid.uuid4().hex}/store/",
        }[request.param]
    )


def test_files_are_written_read_and_listed(folder):
    assert (folder.is_empty(), folder.sizes(), folder.size("a.json")) == (True, {}, None)
    folder.write("a.json", b"one")
    with folder.appearing("shards/00000/b.bin", sync_name=False) as file:
        file.write(b"tw")
        assert folder.size("shards/00000/b.bin") is None
        file.write(b"o2")
    folder.sync_names("shards/00000")
    assert folder.sizes() == {"a.json": 3, "shards/00000/b.bin": 4}
    assert folder.sizes("shards") == {"shards/00000/b.bin": 4}
    with folder.opened("shards/00000/b.bin") as file:
        assert (folder.read("a.json"), file.read()) == (b"one", b"two2")
    assert folder.sha256("a.json") == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert folder.local("a.json", "key").read_bytes() == b"one"
    assert not folder.is_empty(but_for=["a.json"])
    folder.write("a.json", b"three")
    assert folder.read("a.json") == b"three"


def test_files_are_moved_and_removed(folder):
    folder.write("a/b.bin", b"1")
    folder.move("a/b.bin", "damaged/a/b.bin")
    assert folder.sizes() == {"damaged/a/b.bin": 1}
    folder.remove("damaged/a/b.bin")
    folder.remove("damaged/a/b.bin")
    assert folder.sizes() == {}
    with pytest.raises(FileNotFoundError):
        folder.read("damaged/a/b.bin")


def test_lines_are_appended(folder):
    folder.write("plan.json", b"{}")
    folder.append_line("log.jsonl", b"1\n")
    folder.append_line("log.jsonl", b"2\n")
    assert folder.read("log.jsonl") == b"1\n2\n"


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"1\n2")
    open_folder(tmp_path).append_line("log.jsonl", b"3\n")
    assert (tmp_path / "log.jsonl").read_bytes() == b"1\n2\n3\n"


def test_a_block_that_fails_leaves_nothing(folder):
    folder.write("a.bin", b"before")
    with pytest.raises(KeyError), folder.appearing("a.bin") as file:
        file.write(b"after")
        raise KeyError
    assert (folder.sizes(), folder.read("a.bin")) == ({"a.bin": 6}, b"before")


def test_what_the_system_refuses_names_the_file_and_the_way_out(folder):
    with pytest.raises(
        ShardError, match=r"store/x/a.bin could not be written: .*No space left.* same command again"
    ):
        with folder.appearing("x/a.bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert folder.sizes() == {}


def test_copies_are_kept_under_the_key_of_their_content(folder):
    folder.write("a.bin", b"old")
    assert folder.local("a.bin", "old key").read_bytes() == b"old"
    folder.write("a.bin", b"new")
    assert folder.local("a.bin", "new key").read_bytes() == b"new"
    if isinstance(folder, RemoteFolder):
        assert folder.local("a.bin", "old key").read_bytes() == b"old"


def test_one_of_two_holds_the_lock_and_leaves_no_file(tmp_path):
    one, other = open_folder(tmp_path), LocalFolder(tmp_path)
    with one.locked() as ours, other.locked() as theirs:
        assert (ours, theirs, os.listdir(tmp_path)) == (True, False, [".lock"])
        assert one.is_empty()
    assert os.listdir(tmp_path) == []
    with other.locked() as theirs:
        assert theirs


HOLD = """
import sys
from saelens_lite.store.folder import open_folder
with open_folder(sys.argv[1]).locked() as ours:
    print(ours, flush=True)
    sys.stdin.readline()
"""


def holder(folder):
    """A process that holds the lock until it is sent a line; whether it got the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_the_lock_of_a_killed_process_is_free_though_its_file_stays(tmp_path):
    process, got = holder(tmp_path)
    with open_folder(tmp_path).locked() as ours:
        assert (got, ours) == ("True", False)
    process.kill()
    process.communicate()
    assert os.listdir(tmp_path) == [".lock"]
    process, got = holder(tmp_path)
    assert got == "True"
    process.communicate("\n")
    assert (process.returncode, os.listdir(tmp_path)) == (0, [])


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_system_has_no_locks_it_warns_once_and_lets_all_in(tmp_path, monkeypatch, caplog, code):
    def flock(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        caplog.clear()
        with open_folder(tmp_path).locked() as ours:
            assert ours
        assert [record.message for record in caplog.records] == [
            f"{tmp_path} cannot be locked ([Errno {code}] {os.strerror(code)}): nothing keeps a second "
            "process out"
        ]
    assert os.listdir(tmp_path) == []


def test_a_folder_that_takes_no_lock_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"file/.lock could not be written: .*another folder"):
        with open_folder(tmp_path / "file").locked():
            pass


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="nowhere://a expected a folder or a URL that fsspec can open"):
        open_folder("nowhere://a")


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path):
    assert open_folder(tmp_path / "a/b").free_bytes() > 0


def test_a_file_in_the_way_of_a_folder_is_told_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ShardError, match=r"file/store/a.bin could not be written: .*a file is in the way.*another folder"
    ):
        open_folder(tmp_path / "file" / "store").write("a.bin", b"")


@pytest.mark.parametrize(
    ("call", "method"),
    [
        (lambda folder: folder.size("a.bin"), "info"),
        (lambda folder: folder.sizes(), "find"),
        (lambda folder: folder.read("a.bin"), "cat_file"),
        (lambda folder: folder.local("a.bin", "key"), "get_file"),
        (lambda folder: folder.append_line("a.bin", b""), "cat_file"),
        (lambda folder: folder.write("a.bin", b""), "put_file"),
    ],
)
def test_what_a_remote_store_answers_is_named_whatever_its_type(tmp_path, monkeypatch, call, method):
    """As botocore, whose errors are no OSErrors, says it of missing credentials."""
    monkeypatch.setenv("SAELENS_LITE_CACHE", str(tmp_path / "cache"))
    folder = open_folder("memory://answers")

    def answer(*args, **kwargs):
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(type(folder.fs), method, answer)
    with pytest.raises(
        ShardError,
        match=r"^memory://answers.* could not be .*: Unable to locate credentials; .*command again",
    ):
        call(folder)
