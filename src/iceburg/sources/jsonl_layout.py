"""What a JSONL file has beside its records: blank lines, kinds of line ends, a byte order mark, compression."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iceburg.sources.jsonl import BOM, GZIP_MAGIC, JsonlFile, is_blank
from iceburg.sources.peek import read_head

# Of a file that alternates with every line no more is kept than a few hundred kilobytes.
_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class JsonlLayout:
    """What is needed to write the lines of a file as they stood.

    Attributes
    ----------
    end
        The offset behind the last line, in the decompressed file.
    compressed, bom
        Whether it is compressed with gzip, and whether it begins with a byte order mark.
    blank
        Offset and text, line end included, of each blank line; None where there are too many to keep.
    crlf
        First and last offset of each run of lines that end in CR LF; None where there are too many to keep.
    unfinished
        The offset of a last line without a line end, blank or not; None where the last line has one.
    """

    end: int = 0
    compressed: bool = False
    bom: bool = False
    blank: tuple[tuple[int, str], ...] | None = ()
    crlf: tuple[tuple[int, int], ...] | None = ()
    unfinished: int | None = None


def read_layout(path: Path, name: str) -> JsonlLayout:
    """Read the layout of a file; one that is not there is empty.

    Raises
    ------
    SourceError
        It cannot be opened.
    """
    if not path.exists():
        return JsonlLayout()
    blank: list[tuple[int, str]] = []
    runs: list[tuple[int, int]] = []
    end, first, unfinished, in_run = 0, None, None, False
    for line in JsonlFile(path, name).every_line():
        first = line.offset if first is None else first
        end = line.offset + len(line.raw) + len(line.terminator)
        if not line.terminator:
            unfinished = line.offset
        if is_blank(line):
            if len(blank) <= _MOST:
                blank.append((line.offset, (line.raw + line.terminator).decode("ascii")))
        elif line.terminator == b"\r\n":
            if in_run:
                runs[-1] = (runs[-1][0], line.offset)
            elif len(runs) <= _MOST:
                runs.append((line.offset, line.offset))
            in_run = True
        else:
            in_run = False
    return JsonlLayout(
        end=end,
        compressed=read_head(path, len(GZIP_MAGIC)) == GZIP_MAGIC,
        bom=first == len(BOM),
        blank=tuple(blank) if len(blank) <= _MOST else None,
        crlf=tuple(runs) if len(runs) <= _MOST else None,
        unfinished=unfinished,
    )
