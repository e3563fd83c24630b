"""The JSONL files: events of runs, telemetry, versions and intelligence."""

from __future__ import annotations

import gzip
import json
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from iceburg.demo import words
from iceburg.demo.line_oddities import EVENT_LINES, LINES, TELEMETRY_LINES
from iceburg.demo.manifest import Dataset, OddValue, StoreContents

_BOM: Final = b"\xef\xbb\xbf"
_TORN: Final = b'{"event_type": "agent_started", "timestamp": 17487'
_EVENT_FILES = 8
_DUPLICATE_EVERY = 50
_EVENT_TYPES: Final = ("agent_started", "agent_finished", "handover", "retrieval", "error", "emergence_detected")


@dataclass(frozen=True, slots=True)
class LineFile:
    """One JSONL file to be written.

    Attributes
    ----------
    name
        Path relative to the data directory; ``.gz`` at its end compresses it.
    make
        The n-th object.
    lines
        How many objects.
    odd
        Odd lines to stand between them: what each is, in which key, and its bytes.
    crlf, bom, torn
        Whether lines end in CR LF, the file begins with a byte order mark, the last line is unfinished.
    """

    name: str
    make: Callable[[random.Random, int], dict[str, Any]]
    lines: int
    odd: Sequence[tuple[str, str, bytes]] = ()
    crlf: bool = False
    bom: bool = False
    torn: bool = False


def _event(run: str) -> Callable[[random.Random, int], dict[str, Any]]:
    def make(rng: random.Random, number: int) -> dict[str, Any]:
        bits = rng.getrandbits(40)
        return {
            "timestamp": words.moment(rng).isoformat(),
            "run_id": run,
            "agent_id": words.AGENTS[bits & 7],
            "task_id": f"task_{number}",
            "event_type": _EVENT_TYPES[bits % len(_EVENT_TYPES)],
            "payload": {
                "tokens": bits >> 8 & 0xFFF,
                "note": words.sentence(rng),
                "ratio": (bits >> 20 & 255) / 256,
                "parents": [],
            },
        }

    return make


def _telemetry(rng: random.Random, number: int) -> dict[str, Any]:
    bits = rng.getrandbits(40)
    return {
        "event_type": _EVENT_TYPES[bits % len(_EVENT_TYPES)],
        "timestamp": words.epoch(rng),
        "agent_id": words.AGENTS[bits >> 8 & 7],
        "task_id": None if bits >> 11 & 7 == 0 else f"task_{number}",
        "run_id": f"run_{bits >> 16 & 63:02x}",
        "payload": {"stage": words.NOUNS[bits >> 24 & 15], "ms": bits >> 28 & 0xFFF},
        "metadata": {} if bits & 1 else {"host": "node-1", "pid": number % 30_000},
    }


def _prompt(rng: random.Random, number: int) -> dict[str, Any]:
    bits = rng.getrandbits(40)
    failed = bits & 15 == 0
    return {
        "prompt_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "prompt_text": f"{words.sentence(rng)} ({number})",
        "response_time": rng.random() * 30,
        "token_count": bits >> 8 & 0xFFF,
        "model_used": words.MODELS[bits % len(words.MODELS)],
        "success": not failed,
        "error_message": "timed out after 30 s" if failed else None,
        "quality_score": 1.0 if bits & 16 else (bits >> 20 & 255) / 256,
        "timestamp": words.epoch(rng),
    }


def _trace(rng: random.Random, number: int) -> dict[str, Any]:
    bits = rng.getrandbits(30)
    return {
        "timestamp": words.epoch(rng),
        "span": number,
        "parent": number // 2,
        words.VERBS[bits % 9]: words.sentence(rng),
    }


def _version(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "timestamp": words.epoch(rng),
        "component": words.NOUNS[number % 22],
        "version": f"1.{number}.0",
        "hash": f"{rng.getrandbits(64):016x}",
    }


def _intelligence(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "intelligence_id": f"intel_{number}",
        "timestamp": words.moment(rng).isoformat(),
        "domain": words.DOMAINS[number % 8],
        "summary": words.prose(rng, 3),
        "sources": [{"title": words.sentence(rng), "trust": {"score": rng.random(), "by": words.AGENTS[number % 8]}}],
    }


def _files(seed: int, lines: int, *, odd: bool) -> Iterator[LineFile]:
    rng = words.stream(seed, "runs")
    for number in range(_EVENT_FILES):
        run = f"run_{rng.getrandbits(32):08x}"
        name = f"data/events/2025-06-{number + 1:02d}-{run}.jsonl" + (".gz" if number == _EVENT_FILES - 1 else "")
        yield LineFile(
            name,
            _event(run),
            lines // _EVENT_FILES,
            odd=(LINES if number == 0 else EVENT_LINES if number == 1 else ()) if odd else (),
            crlf=odd and number == 2,
            bom=odd and number == 3,
            torn=odd and number == 4,
        )
    yield LineFile("data/telemetry/events.jsonl", _telemetry, lines, odd=TELEMETRY_LINES if odd else ())
    yield LineFile("data/telemetry/prompt_metrics.jsonl", _prompt, lines // 2)
    yield LineFile("data/telemetry/traces.jsonl", _trace, lines // 4)
    yield LineFile("data/versions.jsonl", _version, min(lines // 10, 1000))
    yield LineFile("data/intelligence.jsonl", _intelligence, lines // 10)


def _lines(file: LineFile, rng: random.Random, found: list[OddValue], *, odd: bool) -> Iterator[bytes]:
    """Yield the lines without their ends, blank ones included, and note what is odd."""
    step = max(1, file.lines // (len(file.odd) + 1))
    waiting = list(file.odd)
    duplicates = blanks = 0
    for number in range(file.lines):
        line = json.dumps(file.make(rng, number)).encode()
        yield line
        if odd and number % _DUPLICATE_EVERY == _DUPLICATE_EVERY - 1:
            duplicates += 1
            yield line
            if duplicates % 2:
                blanks += 1
                yield b"" if blanks % 2 else b" \t"
        if waiting and number % step == step - 1:
            what, key, text = waiting.pop(0)
            found.append(OddValue(what, "lines", key))
            yield text
    for what, key, text in waiting:
        found.append(OddValue(what, "lines", key))
        yield text
    if duplicates:
        found.append(OddValue("duplicated line", "lines", "", duplicates))
    if blanks:
        found.append(OddValue("blank line", "lines", "", blanks))


def _write(path: Path, file: LineFile, rng: random.Random, *, odd: bool) -> StoreContents:
    found: list[OddValue] = []
    end = b"\r\n" if file.crlf else b"\n"
    records = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        # No name and no time in the gzip header, so that the same seed gives the same bytes.
        zipped = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else None
        out = zipped or raw
        if file.bom:
            out.write(_BOM)
        for line in _lines(file, rng, found, odd=odd):
            records += bool(line.strip())
            out.write(line + end)
        if file.torn:
            out.write(_TORN)
            records += 1
        if zipped is not None:
            zipped.close()
    for present, what in (
        (file.crlf, "CR LF line ends"),
        (file.bom, "byte order mark"),
        (file.torn, "unfinished last line"),
    ):
        if present:
            found.append(OddValue(what, "lines", ""))
    return StoreContents(file.name, "jsonl", (Dataset("lines", "lines", records),), tuple(found))


def write_events(root: Path, *, seed: int, lines: int, odd: bool) -> list[StoreContents]:
    """Write every JSONL file below ``root``, ``lines`` telemetry lines and a share of that in the others."""
    return [
        _write(root / file.name, file, words.stream(seed, "lines", file.name), odd=odd)
        for file in _files(seed, lines, odd=odd)
    ]
