"""The kept library of the C kernels: damaged, planted, shared, and what stands in the way of keeping it."""

import logging
import os
import shutil
import stat
import subprocess
import tempfile
import threading

import pytest
from filelock import FileLock

from saelens_lite.kernels import cpu_build

NAMES = ("select_topk", "collect", "keep_largest", "screened_topk", "screened_places")
SMALL = "".join(f"long long {name}(void) {{ return 7; }}\n" for name in NAMES)
SMALL += "float nth_largest(void) { return 0.5f; }\n"
PLANTED = (
    '#include <stdio.h>\n__attribute__((constructor)) static void f(void) {{ fclose(fopen("{}", "w")); }}\n'
)

pytestmark = pytest.mark.skipif(shutil.which("cc") is None or os.name != "posix", reason="no C compiler")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, caplog):
    """A small source in place of the kernels, and folders of its own."""
    (tmp_path / "cpu.c").write_text(SMALL)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(cpu_build, "_SOURCES", [tmp_path / "cpu.c"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    caplog.set_level(logging.WARNING)
    yield tmp_path
    assert os.listdir(tmp_path / "tmp") == []


def works(loaded=None):
    loaded = loaded or cpu_build.library.__wrapped__()
    return loaded.select_topk() == 7 and loaded.nth_largest() == 0.5


def kept(place):
    [path] = place.glob("cache/saelens_lite/cpu-*.so")
    return path


def no_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -m64")


@pytest.mark.parametrize("share", [0, 0.3, 0.98])
def test_a_library_that_was_cut_short_is_made_again(place, share, caplog):
    assert works()
    whole = kept(place).read_bytes()
    kept(place).unlink()
    kept_as = place / "cache/saelens_lite" / f"cpu-{cpu_build._key()}-{cpu_build._digest(whole)}.so"
    kept_as.write_bytes(whole[: int(share * len(whole))])  # a new file: this process has mapped the other
    assert works() and kept(place).read_bytes() == whole
    assert not caplog.records


def test_a_kept_library_needs_no_compiler_and_stays_as_it_is(place, monkeypatch):
    assert works()
    before = kept(place).stat()
    no_compiler(monkeypatch)
    assert works() and kept(place).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("way", ["written by all", "of another user", "behind a link"])
def test_a_library_that_another_user_planted_is_not_loaded(place, way):
    (place / "planted.c").write_text(SMALL + PLANTED.format(place / "ran"))
    planted = place / "planted.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(place / "planted.c"), "-o", str(planted)], check=True)
    digest, folder = cpu_build._digest(planted.read_bytes()), place / "cache/saelens_lite"
    folder.mkdir(parents=True, mode=0o700)
    target = folder / f"cpu-{cpu_build._key()}-{digest}.so"
    if way == "behind a link":
        target.symlink_to(planted)
    else:
        shutil.copy(planted, target)
        target.chmod(0o777 if way == "written by all" else 0o755)
    if way == "of another user":
        if os.getuid():
            pytest.skip("this user may give no file away")
        os.chown(target, 65534, 65534)
    assert works() and not (place / "ran").exists()


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_the_folder_of_the_library_is_its_owners(place, mode):
    before = os.umask(0)
    try:
        (place / "cache/saelens_lite").mkdir(parents=True, mode=mode)
        (place / "cache").chmod(0o755)
        assert works()
    finally:
        os.umask(before)
    assert not stat.S_IMODE(kept(place).parent.stat().st_mode) & 0o022
    assert stat.S_IMODE(kept(place).stat().st_mode) == 0o600


def test_folders_are_made_for_their_owner_alone_whatever_the_umask(place):
    before = os.umask(0)
    try:
        assert works()
    finally:
        os.umask(before)
    for folder in (place / "cache", place / "cache/saelens_lite"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("way", ["a file is in the way", "all may write above", "no home"])
def test_where_nothing_can_be_kept_the_process_compiles_for_itself_and_says_so(
    place, way, monkeypatch, caplog
):
    if way == "a file is in the way":
        (place / "cache").write_text("mine")
    elif way == "all may write above":
        (place / "cache").mkdir()
        (place / "cache").chmod(0o777)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(cpu_build.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert works()
    [record] = caplog.records
    assert "the C kernels cannot be kept" in record.message and "set XDG_CACHE_HOME" in record.message
    assert not [*place.glob("cache/saelens_lite/*.so")]


def test_a_disk_that_is_full_is_said_once(place, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cpu_build, "sync", full)
    assert works() and "No space left on device" in caplog.text and len(caplog.records) == 1
    assert [path.name for path in (place / "cache/saelens_lite").iterdir() if path.name != "lock"] == []


@pytest.mark.parametrize("compiler", ["cc -m64", "env cc", ""])
def test_cc_may_hold_arguments(place, compiler, monkeypatch, caplog):
    monkeypatch.setenv("CC", compiler)
    assert works() and not caplog.records


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler -m64", "there is no compiler 'no-such-compiler -m64'"),
        ("false", "ended with 1"),
        ("cc --no-such-flag", "no-such-flag"),
        ("cc 'x", "No closing quotation"),
    ],
)
def test_kernels_that_cannot_be_compiled_are_said_with_the_reason(place, compiler, said, monkeypatch, caplog):
    monkeypatch.setenv("CC", compiler)
    assert cpu_build.library.__wrapped__() is None
    [record] = caplog.records
    assert said in record.message and "install a C compiler" in record.message


def test_of_several_processes_one_compiles(place, monkeypatch):
    assert works()
    library, aside = kept(place), place / "aside"
    os.rename(library, aside)
    no_compiler(monkeypatch)
    found = []
    with FileLock(library.parent / "lock"):
        other = threading.Thread(target=lambda: found.append(cpu_build.library.__wrapped__()))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        os.rename(aside, library)
    other.join(10)
    assert works(found[0])
