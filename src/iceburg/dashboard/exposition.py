"""What the dashboard knows of an installation, for Prometheus.

The names differ from those of `iceburg.database.metrics`: these are of the installation as a whole, those of one
process of the application.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from iceburg.dashboard.board import Board
from iceburg.dashboard.latency import Latency
from iceburg.dashboard.snapshot import Gate, Kept, Migration, Now, State
from iceburg.database.phases import Phase
from iceburg.migration.heartbeat import ALIVE

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(board: Board, latency: Latency | None) -> bytes:
    """Write everything that is known; of what was not found yet there is nothing.

    Parameters
    ----------
    board
        What was found last.
    latency
        What the layer has measured lately; None where PostgreSQL cannot be asked.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(board, latency))
    return generate_latest(registry)


class _Collector:
    def __init__(self, board: Board, latency: Latency | None) -> None:
        self._board = board
        self._latency = latency

    def _record(self, part: Any) -> Any:
        posted = self._board.find(part)
        return None if posted is None else posted.record

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        if (now := self._record("now")) is not None:
            yield from _now(now)
        # What was found while PostgreSQL answered is not shown as if it still held.
        if now is None or not now.reachable:
            return
        for part, write in (("migration", _migration), ("gate", _gate), ("kept", _kept), ("state", _state)):
            if (record := self._record(part)) is not None:
                yield from write(record)
        if self._latency is not None:
            yield from _window(self._latency)


def _gauge(name: str, what: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what)
    if value is not None:
        family.add_metric([], value)
    return family


def _now(now: Now) -> Iterator[Metric]:
    yield _gauge("iceburg_target_up", "1 while PostgreSQL answers the dashboard.", float(now.reachable))
    phases = GaugeMetricFamily("iceburg_phase", "1 for the phase of the installation.", labels=["phase"])
    if now.phase is not None:
        for phase in Phase:
            phases.add_metric([phase.value], float(phase.value == now.phase))
    yield phases
    pending = GaugeMetricFamily(
        "iceburg_source_pending_changes",
        "Changes of a store (bytes of a JSONL file) that PostgreSQL does not have.",
        labels=["source", "kind"],
    )
    lag = GaugeMetricFamily(
        "iceburg_source_lag_seconds", "For how long PostgreSQL has not had all changes of a store.", labels=["source"]
    )
    for source in now.sources:
        if source.pending is not None:
            pending.add_metric([source.source, source.kind], source.pending)
        lag.add_metric([source.source], source.lag_seconds)
    yield pending
    yield lag
    follower = now.follower
    yield _gauge(
        "iceburg_follower_silent_seconds",
        "Seconds since the follower has said that it is there.",
        None if follower is None else follower.silent_seconds,
    )
    applied = CounterMetricFamily("iceburg_follower_applied_records_total", "Records applied by the follower.")
    if follower is not None:
        applied.add_metric([], follower.applied, created=follower.started_at.timestamp())
    yield applied


def _migration(migration: Migration) -> Iterator[Metric]:
    source = GaugeMetricFamily("iceburg_dataset_source_rows", "Records in the store.", labels=["dataset"])
    copied = GaugeMetricFamily("iceburg_dataset_copied_rows", "Rows copied.", labels=["dataset"])
    kept = GaugeMetricFamily("iceburg_dataset_preserved_originals", "Values kept beside their row.", labels=["dataset"])
    for dataset in migration.datasets:
        if dataset.total_rows is not None:
            source.add_metric([dataset.dataset], dataset.total_rows)
        copied.add_metric([dataset.dataset], dataset.copied_rows)
        kept.add_metric([dataset.dataset], dataset.preserved_originals)
    yield from (source, copied, kept)


def _gate(gate: Gate) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "iceburg_gate_condition_held", "1 while a condition of the gate holds.", labels=["condition"]
    )
    for condition in gate.conditions:
        held.add_metric([condition.name], float(condition.held))
    yield held


def _kept(kept: Kept) -> Iterator[Metric]:
    records = GaugeMetricFamily("iceburg_quarantined_records", "Records in quarantine.", labels=["dataset", "reason"])
    for count in kept.counts:
        records.add_metric([count.dataset, count.reason], count.records)
    yield records


def _state(state: State) -> Iterator[Metric]:
    server = state.server
    yield _gauge("iceburg_database_size_bytes", "Size of the database.", server.size_bytes)
    yield _gauge("iceburg_server_max_connections", "Connections that the server takes.", server.max_connections)
    yield _gauge("iceburg_server_connections", "Connections to the server.", server.connections)
    connections = GaugeMetricFamily(
        "iceburg_database_connections", "Connections to the database.", labels=["application", "state"]
    )
    for found in state.connections:
        connections.add_metric([found.application, found.state], found.connections)
    yield connections
    processes = GaugeMetricFamily(
        "iceburg_layer_processes", "Processes of the unified layer that have been heard of lately.", labels=["mode"]
    )
    for mode, number in Counter(p.mode for p in state.processes if p.silent_seconds <= ALIVE).items():
        processes.add_metric([mode], number)
    yield processes


def _window(latency: Latency) -> Iterator[Metric]:
    labels = ["operation", "kind", "side"]
    minutes = f"in the last {latency.minutes} minutes"
    p50 = GaugeMetricFamily("iceburg_window_p50_seconds", f"Median of the durations {minutes}.", labels=labels)
    p95 = GaugeMetricFamily("iceburg_window_p95_seconds", f"95th percentile of the durations {minutes}.", labels=labels)
    calls = GaugeMetricFamily("iceburg_window_calls", f"Calls {minutes}.", labels=labels)
    errors = GaugeMetricFamily("iceburg_window_errors", f"Calls that failed {minutes}.", labels=labels)
    for side in latency.sides:
        names = [side.operation, side.kind, side.side]
        calls.add_metric(names, side.calls)
        errors.add_metric(names, side.errors)
        for family, seconds in ((p50, side.p50), (p95, side.p95)):
            if seconds is not None:
                family.add_metric(names, seconds)
    yield from (p50, p95, calls, errors)
    compared = GaugeMetricFamily("iceburg_window_comparisons", f"Reads compared {minutes}.", labels=["operation"])
    different = GaugeMetricFamily(
        "iceburg_window_mismatches", f"Compared reads that differed {minutes}.", labels=["operation"]
    )
    for found in latency.comparisons:
        compared.add_metric([found.operation], found.comparisons)
        different.add_metric([found.operation], found.mismatches)
    yield from (compared, different)
