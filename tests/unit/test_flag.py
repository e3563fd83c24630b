"""The flag, from the environment and from a file that changes while processes run."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iceburg.config import Settings, load_settings, parse_flag
from iceburg.database.flag import Flag, write_flag
from iceburg.errors import UsageError
from tests.contract.values import at_once

WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# So long may a running process take to see a change.
A_SECOND = 1.0


def flag(path: Path | None = None, *, default: bool = False) -> Flag:
    return Flag(Settings(use_postgres=default, flag_file=path))


def comes_to(flag: Flag, value: bool, within: float = A_SECOND) -> bool:
    """Whether a flag, asked all the time, has a value in time, and keeps it."""
    deadline = time.monotonic() + within
    while bool(flag) != value:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def stays(flag: Flag, value: bool) -> bool:
    """Whether a flag, asked all the time, has a value over several looks."""
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        if bool(flag) != value:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("word", [*WORDS, *map(str.upper, WORDS), "  True\n", "oN\t"])
def test_words(word: str) -> None:
    assert parse_flag(word) is WORDS[word.strip().lower()]


@pytest.mark.parametrize(
    "word", ["", " ", "2", "-1", "t", "y", "enabled", "truefalse", "true false", "none", "ja", "١"]
)
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not a flag"):
        parse_flag(word)


@pytest.mark.parametrize(("word", "value"), WORDS.items())
def test_the_environment_says_so(monkeypatch: pytest.MonkeyPatch, word: str, value: bool) -> None:
    monkeypatch.setenv("ICEBURG_USE_POSTGRES", word)
    monkeypatch.setenv("ICEBURG_DUAL_WRITE", word)
    settings = load_settings()
    assert settings.dual_write is value
    assert bool(Flag(settings)) is value


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ICEBURG_USE_POSTGRES", "ICEBURG_DUAL_WRITE", "ICEBURG_FLAG_FILE"):
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert settings.dual_write is True
    assert bool(Flag(settings)) is False


@pytest.mark.parametrize("name", ["ICEBURG_USE_POSTGRES", "ICEBURG_DUAL_WRITE"])
def test_anything_else_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "maybe")
    with pytest.raises(UsageError, match=f"{name} accepts true, 1, yes, on, false, 0, no or off"):
        load_settings()


@pytest.mark.parametrize("default", [True, False])
def test_without_a_file_the_environment_counts(tmp_path: Path, default: bool) -> None:
    assert bool(flag(default=default)) is default
    assert bool(flag(tmp_path / "flag", default=default)) is default
    assert bool(flag(tmp_path / "no" / "such" / "folder", default=default)) is default
    (tmp_path / "flag").write_text(" \n")
    assert bool(flag(tmp_path / "flag", default=default)) is default


@pytest.mark.parametrize("default", [True, False])
def test_the_file_has_the_last_word(tmp_path: Path, default: bool) -> None:
    path = tmp_path / "flag"
    for value in (True, False):
        write_flag(path, value)
        assert bool(flag(path, default=default)) is value


def test_a_file_that_holds_no_flag_is_an_error_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    path.write_text("perhaps")
    with pytest.raises(UsageError, match="'perhaps' is not a flag") as caught:
        flag(path)
    assert caught.value.where == str(path)
    path.write_bytes(b"\xff" * 1_000_000)
    with pytest.raises(UsageError, match="is not a flag") as caught:
        flag(path)
    assert len(str(caught.value)) < 400


def test_a_file_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        flag(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be read: Not a directory"):
        flag(tmp_path / "file" / "flag")


def test_a_change_is_taken_up_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    running = flag(path)
    for value in (True, False, True):
        write_flag(path, value)
        assert comes_to(running, value)
    path.unlink()
    assert comes_to(running, False)
    path.write_text("yes")
    assert comes_to(running, True)
    path.write_text("")
    assert comes_to(running, False)


def test_a_change_of_the_same_length_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    path.write_text("1")
    status = path.stat()
    running = flag(path)
    assert running
    with path.open("r+") as file:
        file.write("0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) == (
        status.st_ino,
        status.st_mtime_ns,
        status.st_size,
    )
    assert comes_to(running, False)


def test_a_file_that_is_just_being_written_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    write_flag(path, True)
    running = flag(path)
    for empty in (lambda: path.write_text(""), path.unlink) * 2:
        empty()
        time.sleep(0.3)
        assert running
        path.write_text("true")
        time.sleep(0.3)
        assert running


def test_a_process_that_has_not_asked_for_long_sees_the_change_at_once(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    running = flag(path)
    assert not running
    write_flag(path, True)
    time.sleep(0.3)
    assert running


def test_a_running_process_keeps_what_was_true(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flag"
    write_flag(path, True)
    running = flag(path)
    path.write_text("flase")
    with caplog.at_level(logging.ERROR):
        assert stays(running, True)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 'flase' is not a flag: use true or false; the flag stays true"
    ]
    caplog.clear()
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.ERROR):
        assert stays(running, True)
    (said,) = caplog.records
    assert said.getMessage().endswith("the flag stays true")
    path.rmdir()
    caplog.clear()
    write_flag(path, False)
    assert comes_to(running, False)
    path.write_text("flase")
    with caplog.at_level(logging.ERROR):
        assert stays(running, False)
    assert len(caplog.records) == 1


def test_several_threads_see_a_change(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    running = flag(path)
    seen: list[bool] = []

    def task() -> None:
        seen.append(comes_to(running, True, 3.0))

    def change() -> None:
        write_flag(path, True)

    tasks: list[Callable[[], object]] = [*[task] * 8, change]
    at_once(tasks)
    assert seen == [True] * 8


def test_a_child_that_is_forked_while_another_thread_looks_sees_changes(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    running = flag(path)
    held, done = threading.Event(), threading.Event()

    def look() -> None:
        with running._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=look)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        write_flag(path, True)
        os._exit(0 if comes_to(running, True) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    done.set()
    thread.join()
    assert comes_to(running, True)


def test_asking_is_cheap(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    write_flag(path, True)
    running = flag(path)
    started = time.perf_counter()
    for _ in range(10_000):
        bool(running)
    assert (time.perf_counter() - started) / 10_000 < 20e-6


# Writing it


def test_a_flag_is_written_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "flag"
    umask = os.umask(0o022)
    try:
        write_flag(path, True)
    finally:
        os.umask(umask)
    assert path.read_text() == "true\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_flag(path, False)
    assert path.read_text() == "false\n"
    assert [found.name for found in path.parent.iterdir()] == ["flag"]


def test_a_flag_keeps_its_permissions_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    path.write_text("false")
    path.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(path, 12_345, 23_456)
    before = path.stat()
    write_flag(path, True)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert path.read_text() == "true\n"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "flag").symlink_to(tmp_path / "true-flag")
    write_flag(tmp_path / "flag", True)
    assert (tmp_path / "flag").is_symlink()
    assert (tmp_path / "true-flag").read_text() == "true\n"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_flag(path, True)
    assert [found.name for found in tmp_path.iterdir()] == ["flag"]


def test_readers_never_see_half_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    write_flag(path, True)
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(200):
        write_flag(path, bool(n % 2))
    stop.set()
    thread.join()
    assert seen <= {"true\n", "false\n"}
