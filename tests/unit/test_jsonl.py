"""Lines of JSONL files, plain and compressed, whole and damaged."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iceburg.errors import SourceError
from iceburg.records import Key, Line
from iceburg.sources import jsonl
from iceburg.sources.jsonl import JsonlFile, Scan

BOM = b"\xef\xbb\xbf"
PIECES = st.sampled_from(
    [b"\n", b"\n\n", b"\r\n", b"\r", b" ", b"\t", b"a", b'{"x": 1}', b"\xff", b"\0", b"\x0c", BOM, b"\xc2\x85"]
)
CONTENT = st.lists(PIECES, max_size=25).map(b"".join)


def lines(path: Path, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000) -> list[Line]:
    found: list[Line] = []
    for batch in JsonlFile(path, "x").batches(after=after, upto=upto, size=size):
        assert 0 < len(batch.records) <= size
        assert batch.last == (batch.records[-1].offset,)
        found.extend(batch.records)
    return found


def expected(content: bytes) -> list[Line]:
    """The same by other means: every line, each found by the line feeds before it."""
    start = len(BOM) if content.startswith(BOM) else 0
    found = []
    number = 1
    while start < len(content):
        end = content.find(b"\n", start)
        line = content[start:] if end < 0 else content[start : end + 1]
        terminator = b"\r\n" if line.endswith(b"\r\n") else b"\n" if line.endswith(b"\n") else b""
        raw = line[: len(line) - len(terminator)]
        if any(byte not in b" \t\r" for byte in raw):
            found.append(Line(start, number, raw, terminator))
        start += len(line)
        number += 1
    return found


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT, size=st.integers(1, 6), zipped=st.booleans(), chunk=st.integers(1, 9), data=st.data())
def test_every_line_from_every_position(
    tmp_path: Path, content: bytes, size: int, zipped: bool, chunk: int, data: st.DataObject
) -> None:
    path = tmp_path / "some.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_CHUNK", chunk)
        if zipped:
            cut = data.draw(st.integers(0, len(content)))
            path.write_bytes(gzip.compress(content[:cut]) + gzip.compress(content[cut:]))
        else:
            path.write_bytes(content)
        whole = expected(content)
        assert lines(path, size=size) == whole
        scan = JsonlFile(path, "x").scan()
        assert scan.lines == JsonlFile(path, "x").count() == len(whole)
        assert scan.bom == content.startswith(BOM)
        body = content.removeprefix(BOM)
        assert scan.lines + scan.blank_lines == body.count(b"\n") + bool(body and not body.endswith(b"\n"))
        assert scan.torn == bool(whole and not whole[-1].terminator)
        assert scan.problem is None
        unnumbered = [Line(line.offset, 0, line.raw, line.terminator) for line in whole]
        for index, line in enumerate(whole):
            key = (line.offset,)
            assert lines(path, after=key, size=size) == unnumbered[index + 1 :]
            assert lines(path, upto=key, size=size) == whole[: index + 1]
        if whole:
            first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(whole) - 1)] * 2)))
            assert (
                lines(path, after=(whole[first].offset,), upto=(whole[last].offset,), size=size)
                == unnumbered[first + 1 : last + 1]
            )


def test_the_lines_are_the_file(tmp_path: Path) -> None:
    content = b'{"a": 1}\r\n{"a": 1}\n\xff\xfe{\x00\n{"torn": tr'
    (tmp_path / "a.jsonl").write_bytes(content)
    found = lines(tmp_path / "a.jsonl")
    assert b"".join(line.raw + line.terminator for line in found) == content
    assert [line.raw for line in found[:2]] == [b'{"a": 1}'] * 2
    assert found[-1].terminator == b""


def test_a_torn_line_is_read_again_once_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    whole, torn = lines(path)
    with path.open("ab") as file:
        file.write(b"2}\n")
    assert lines(path, after=(whole.offset,)) == [Line(torn.offset, 0, b'{"b": 2}', b"\n")]


def test_a_file_that_grows_shrinks_or_goes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    batches = JsonlFile(path, "x").batches(size=1)
    first = next(batches)
    with path.open("ab") as file:
        file.write(b"3\n")
    path.unlink()
    rest = [line.raw for batch in batches for line in batch.records]
    assert [line.raw for line in first.records] == [b"1"]
    assert rest in ([b"2"], [b"2", b"3"])
    path.write_bytes(b"1\n")
    assert lines(path, after=(100,)) == []


@pytest.mark.parametrize("cut", [5, 12, 60, 1_000, -9, -8, -4, -1])
def test_a_compressed_file_that_was_cut(tmp_path: Path, cut: int) -> None:
    content = b"".join(b'{"n": %d, "x": "%s"}\n' % (n, os.urandom(20).hex().encode()) for n in range(500))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content)[:cut])
    file = JsonlFile(path, "telemetry/a.jsonl.gz")
    found: list[Line] = []
    batches = file.batches(size=10)
    with pytest.raises(SourceError, match=r"telemetry/a\.jsonl\.gz: the compressed file was cut"):
        found.extend(line for batch in batches for line in batch.records)
    read = b"".join(line.raw + line.terminator for line in found)
    assert content.startswith(read)
    if cut < 0:
        assert read == content
    if cut == 1_000:
        assert len(found) > 5
    scan = file.scan()
    assert scan.problem is not None
    assert scan.lines == file.count() == len(found)


def test_a_compressed_file_that_is_damaged(tmp_path: Path) -> None:
    content = b'{"n": 1}\n' * 10_000
    path = tmp_path / "a.jsonl.gz"
    zipped = bytearray(gzip.compress(content))
    zipped[-6] ^= 1  # the checksum
    path.write_bytes(zipped)
    assert JsonlFile(path, "x").scan() == Scan(10_000, 0, False, False, JsonlFile(path, "x").scan().problem)
    with pytest.raises(SourceError, match="the compressed data is damaged"):
        lines(path)
    batches = JsonlFile(path, "x").batches()
    assert sum(line.raw == b'{"n": 1}' for line in next(batches).records) == 10_000
    with pytest.raises(SourceError, match="incorrect data check"):
        next(batches)
    path.write_bytes(gzip.compress(content) + b"garbage")
    with pytest.raises(SourceError, match="the compressed data is damaged"):
        lines(path)


def test_zeros_after_the_compressed_data_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"1\n") + bytes(3_000_000) + gzip.compress(b"2\n") + bytes(5))
    assert [line.raw for line in lines(path)] == [b"1", b"2"]


def test_compression_is_judged_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"1\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(b"2\n")
    assert lines(tmp_path / "a.jsonl")[0].raw == b"1"
    assert lines(tmp_path / "b.jsonl.gz")[0].raw == b"2"


def test_batches_end_early_for_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 1_000)
    path = tmp_path / "a.jsonl"
    lengths = [400, 400, 400, 5_000, 10, 980, 20]
    path.write_bytes(b"".join(b"x" * length + b"\n" for length in lengths))
    batches = [[len(line.raw) for line in batch.records] for batch in JsonlFile(path, "x").batches()]
    assert batches == [[400, 400], [400], [5_000], [10, 980], [20]]


@pytest.mark.parametrize("zipped", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.jsonl"
    content = (b'{"x": "%s"}\n' % (b"y" * 80)) * 100_000
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    del content
    tracemalloc.start()
    try:
        assert sum(len(batch.records) for batch in JsonlFile(path, "x").batches(size=1_000)) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_very_long_line_costs_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 40_000_000 + b"\nshort\n")
    tracemalloc.start()
    try:
        found = lines(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    assert [len(line.raw) for line in found] == [40_000_000, 5]


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(?s)^a\.jsonl: cannot be read: No such file.*Check the path"):
        JsonlFile(tmp_path / "a.jsonl", "a.jsonl").count()
    with pytest.raises(SourceError, match="is a directory"):
        JsonlFile(tmp_path, "d").count()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    assert lines(path) == []
    with pytest.raises(ValueError, match="at least one"):
        lines(path, size=0)
    with pytest.raises(TypeError, match="offset"):
        lines(path, after=("1",))
