"""Lines written back: what stood between them stands there again, a value is in the style that fills its place."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceburg.mappings.json_value import same_json
from iceburg.migration.jsonl_restore import TargetLine, restore_lines, styled
from iceburg.sources import jsonl_layout
from iceburg.sources.jsonl import BOM, JsonlFile
from iceburg.sources.jsonl_layout import JsonlLayout, read_layout

LINES = st.lists(
    st.tuples(
        st.sampled_from([b"{}", b'{"a": 1}', b"torn", b"", b" ", b"\t ", b"x\rx"]),
        st.sampled_from([b"\n", b"\n", b"\r\n"]),
    ),
    max_size=12,
)


def exact_lines(path: Path) -> Iterator[TargetLine]:
    """The lines of a file as if PostgreSQL had kept the bytes of each."""
    for batch in JsonlFile(path, path.name).batches():
        yield from (TargetLine(line, True, False) for line in batch.records)


def restored(path: Path, to: Path, layout: JsonlLayout) -> bytes:
    list(restore_lines(to, exact_lines(path), json.loads(json.dumps(asdict(layout)))))
    return to.read_bytes()


@given(
    lines=LINES,
    last=st.sampled_from([b"", b"{}", b"torn", b" "]),
    bom=st.booleans(),
)
def test_a_file_whose_lines_are_kept_comes_back_to_the_byte(
    lines: list[tuple[bytes, bytes]], last: bytes, *, bom: bool
) -> None:
    content = b"".join(raw + end for raw, end in lines) + last
    content = BOM + content if bom and content else content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.jsonl")
        path.write_bytes(content)
        layout = read_layout(path, path.name)
        assert layout.end == len(content)
        assert restored(path, Path(folder, "out.jsonl"), layout) == content


def test_a_compressed_file_is_compressed_again(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    content = b'{"a": 1}\r\n\n{"b": 2}\n'
    path.write_bytes(gzip.compress(content))
    found = restored(path, tmp_path / "out", read_layout(path, path.name))
    assert gzip.decompress(found) == content


def test_a_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_layout(tmp_path / "none", "none") == JsonlLayout()


def test_more_oddities_than_are_kept_are_said_to_be_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_layout, "_MOST", 3)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\r\n\n{}\n" * 4)
    layout = read_layout(path, path.name)
    assert (layout.blank, layout.crlf) == (None, None)
    path.write_bytes(b"{}\r\n\n{}\n" * 3)
    layout = read_layout(path, path.name)
    assert len(layout.blank or ()) == len(layout.crlf or ()) == 3


def test_a_line_without_an_end_gets_one_where_another_follows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\nto')
    layout = read_layout(path, path.name)
    lines = list(exact_lines(path))
    more = TargetLine(lines[0].line.__class__(layout.end, 0, b"{}", b"\n"), True, False)
    list(restore_lines(tmp_path / "out", [*lines, more], asdict(layout)))
    assert (tmp_path / "out").read_bytes() == b'{"a": 1}\nto\n{}\n'


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcü\"", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
STYLES: list[dict[str, Any]] = [
    {},
    {"ensure_ascii": False},
    {"separators": (",", ":")},
    {"ensure_ascii": False, "separators": (",", ":")},
]


@given(value=st.dictionaries(st.text("abcü", max_size=3), VALUES, max_size=3), style=st.sampled_from(STYLES))
def test_a_value_keeps_its_value_in_any_place(value: dict[str, Any], style: dict[str, Any]) -> None:
    written = json.dumps(value, **style)
    printed = json.dumps(value, ensure_ascii=False).encode()
    for room in (len(written.encode()), 0, 1000):
        assert same_json(styled(printed, room).decode(), written)


@pytest.mark.parametrize("style", STYLES)
def test_a_value_is_written_in_the_style_that_fills_its_place(style: dict[str, Any]) -> None:
    value = {"text": "ü", "list": [1, 2.5], "n": None}
    written = json.dumps(value, **style).encode()
    printed = json.dumps(value, ensure_ascii=False).encode()
    assert styled(printed, len(written)) == written


@pytest.mark.parametrize(
    ("printed", "usual"),
    [
        (b'{"a": 0.50}', b'{"a": 0.5}'),
        (b'{"a": 1' + b"0" * 300 + b".0}", b'{"a": 1e+300}'),
        (b'{"a": 0.' + b"0" * 20 + b"1}", b'{"a": 1e-21}'),
        (b'{"a": 18446744073709551616}', b'{"a": 18446744073709551616}'),
        (b'{"a": 0.1000000000000000055511151231257827}', b'{"a": 0.1000000000000000055511151231257827}'),
    ],
)
def test_numbers_are_written_as_python_writes_them_where_that_is_the_same(printed: bytes, usual: bytes) -> None:
    assert styled(printed, 0) == usual
    assert styled(printed, len(printed)) == printed
