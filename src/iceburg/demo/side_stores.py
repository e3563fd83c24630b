"""The small databases beside the large ones: one in WAL mode, one quite ordinary, one of no bytes at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from iceburg.demo import words
from iceburg.demo.manifest import Dataset, StoreContents
from iceburg.demo.sqlite_file import SqlValue, building, write_rows

_PERFORMANCE: Final = (
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, component TEXT NOT NULL, metric TEXT NOT NULL,"
    " value REAL NOT NULL, unit TEXT, recorded_at REAL NOT NULL, labels TEXT)",
    "CREATE INDEX idx_metrics_component ON metrics(component, recorded_at)",
    "CREATE TABLE alerts (alert_id TEXT PRIMARY KEY, metric_id INTEGER REFERENCES metrics(id), raised_at REAL NOT NULL,"
    " acknowledged BOOLEAN DEFAULT 0)",
)
_EMOTIONAL: Final = (
    "CREATE TABLE emotions (emotion_id TEXT PRIMARY KEY, label TEXT NOT NULL, valence REAL, arousal REAL,"
    " felt_at REAL NOT NULL)",
    "CREATE TABLE emotion_triggers (emotion_id TEXT REFERENCES emotions(emotion_id), cue TEXT,"
    " PRIMARY KEY (emotion_id, cue))",
)
_CUES_PER_EMOTION = 2


def _metrics(seed: int) -> Iterator[tuple[SqlValue, ...]]:
    rng = words.stream(seed, "performance")
    while True:
        bits = rng.getrandbits(32)
        labels = json.dumps({"host": f"node-{bits & 3}", "agent": words.AGENTS[bits >> 2 & 7]})
        yield words.AGENTS[bits >> 8 & 7], "latency", rng.random() * 30, "s", words.epoch(rng), labels


def write_performance(path: Path, name: str, *, seed: int, rows: int) -> StoreContents:
    """Write the performance metrics in journal mode WAL, its log emptied and removed by a clean close."""
    alerts = rows // 10
    with building(path, wal=True) as connection:
        for statement in _PERFORMANCE:
            connection.execute(statement)
        columns = ("component", "metric", "value", "unit", "recorded_at", "labels")
        write_rows(connection, "metrics", columns, _metrics(seed), rows)
        rng = words.stream(seed, "alerts")
        raised = ((f"alert_{n}", n * 10 + 1, words.epoch(rng), n & 1) for n in range(alerts))
        write_rows(connection, "alerts", ("alert_id", "metric_id", "raised_at", "acknowledged"), raised, alerts)
    return StoreContents(name, "sqlite", (Dataset("metrics", "table", rows), Dataset("alerts", "table", alerts)))


def write_emotional(path: Path, name: str, *, seed: int, rows: int) -> StoreContents:
    """Write the emotional memory."""
    rng = words.stream(seed, "emotions")
    with building(path) as connection:
        for statement in _EMOTIONAL:
            connection.execute(statement)
        felt = (
            (f"emotion_{n}", words.NOUNS[n % 22], rng.random() * 2 - 1, rng.random(), words.epoch(rng))
            for n in range(rows)
        )
        write_rows(connection, "emotions", ("emotion_id", "label", "valence", "arousal", "felt_at"), felt, rows)
        cues = rows * _CUES_PER_EMOTION
        cued = ((f"emotion_{n // 2}", f"{words.VERBS[n % 9]} {n % 2}") for n in range(cues))
        write_rows(connection, "emotion_triggers", ("emotion_id", "cue"), cued, cues)
    return StoreContents(
        name, "sqlite", (Dataset("emotions", "table", rows), Dataset("emotion_triggers", "table", cues))
    )


def write_empty(path: Path, name: str) -> StoreContents:
    """Write a file of no bytes, which is an empty SQLite database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return StoreContents(name, "sqlite", ())
