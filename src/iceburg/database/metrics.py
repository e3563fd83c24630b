"""What the layer measures, under Prometheus' names: base units, ``_total`` for what only grows."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
AVAILABLE: Final = Gauge("iceburg_postgres_available", "1 while PostgreSQL answers, 0 while it is left alone.")


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool at a moment: connections lent, connections that are not, callers that wait for one."""

    used: int
    idle: int
    waiting: int


class Pool(Protocol):
    """What has connections."""

    def use(self) -> PoolUse | None:
        """Return how it is used; None where it is not in use, or another process's."""
        ...


class _Pools(Collector):
    """Looks at the pools when it is asked: nothing is counted where connections are lent."""

    def __init__(self) -> None:
        self._pools: list[weakref.ref[Pool]] = []

    def add(self, pool: Pool) -> None:
        self._pools.append(weakref.ref(pool, self._pools.remove))

    def describe(self) -> list[Metric]:
        return [self._family()]

    def collect(self) -> list[Metric]:
        pools = [pool for found in tuple(self._pools) if (pool := found()) is not None]
        uses = [use for pool in pools if (use := pool.use()) is not None]
        family = self._family()
        for state in ("used", "idle", "waiting"):
            family.add_metric([state], sum(getattr(use, state) for use in uses))
        return [family]

    @staticmethod
    def _family() -> GaugeMetricFamily:
        text = "Connections to PostgreSQL: used, idle; and callers waiting for one."
        return GaugeMetricFamily("iceburg_pool_connections", text, labels=["state"])


POOLS: Final = _Pools()
"""The pools of this process: ``iceburg_pool_connections``."""
REGISTRY.register(POOLS)


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
