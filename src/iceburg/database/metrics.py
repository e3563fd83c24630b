"""What the layer measures, under Prometheus' names: base units, ``_total`` for what only grows."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

OPERATIONS: Final = Counter("iceburg_operations_total", "Operations of the layer.", ("operation", "side", "outcome"))
DURATIONS: Final = Histogram(
    "iceburg_operation_duration_seconds", "How long operations took.", ("operation", "side"), buckets=_BUCKETS
)
PENDING: Final = Gauge(
    "iceburg_pending_changes", "Changes of a source (bytes of a JSONL file) that PostgreSQL does not have.", ("source",)
)
LAG: Final = Gauge("iceburg_lag_seconds", "For how long PostgreSQL has not had all changes of a source.", ("source",))
APPLIED: Final = Counter("iceburg_applied_changes_total", "Changes applied by this process.", ("source",))
COMPARISONS: Final = Counter(
    "iceburg_shadow_comparisons_total", "Reads compared: same side twice (aa) or both (ab).", ("operation", "kind")
)
MISMATCHES: Final = Counter("iceburg_shadow_mismatches_total", "Compared reads that differed.", ("operation", "kind"))
INCONCLUSIVE: Final = Counter(
    "iceburg_shadow_inconclusive_total", "Reads not compared because something was written meanwhile.", ("operation",)
)
POOL: Final = Gauge("iceburg_pool_connections", "Connections to PostgreSQL.", ("state",))
AVAILABLE: Final = Gauge("iceburg_postgres_available", "1 while PostgreSQL answers, 0 while it is left alone.")


@cache
def _calls(operation: str, side: str, outcome: str) -> Counter:
    return OPERATIONS.labels(operation, side, outcome)


@cache
def _durations(operation: str, side: str) -> Histogram:
    return DURATIONS.labels(operation, side)


def note_call(operation: str, side: str, outcome: str, seconds: float) -> None:
    """Count a call and its duration; there are few operations, and their series are found once."""
    _calls(operation, side, outcome).inc()
    _durations(operation, side).observe(seconds)
