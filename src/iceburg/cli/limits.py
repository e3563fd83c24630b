"""The options that say what the gate asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from iceburg.cli.application import Stop
from iceburg.database.connection import Target
from iceburg.database.schema import SchemaNames
from iceburg.monitoring.gate import Limits
from iceburg.progress_view import ProgressView
from iceburg.records import Store
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.consistency_report import ConsistencyReport
from iceburg.verification.recorded_check import run_recorded

DEFAULTS = Limits()

VerifiedWithin = Annotated[
    float, typer.Option("--verified-within", metavar="HOURS", min=0, help="How old the verification may be.")
]
LeastComparisons = Annotated[
    int, typer.Option("--comparisons", metavar="N", min=0, help="How many reads must have been compared.")
]
LatencyFloor = Annotated[
    float,
    typer.Option(
        "--latency-floor", metavar="MS", min=0, help="A p95 of PostgreSQL up to this is fast enough; 0: no floor."
    ),
]
Excess = Annotated[
    float,
    typer.Option("--excess", metavar="PERCENT", min=0, help="How far PostgreSQL's errors and p95 may exceed SQLite's."),
]
ProbeCount = Annotated[
    int,
    typer.Option("--probe", metavar="N", min=0, help="Ask both sides N questions first, drawn from the data."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Which questions --probe draws.")]

# At records that change at every look, and stores that have just been made.
_ATTEMPTS = 4


def checking(
    target: Target,
    names: SchemaNames,
    rediscover: Callable[[], list[Store]],
    view: ProgressView,
    stop: Stop,
    *,
    narrowed: bool = False,
) -> Callable[[], ConsistencyReport]:
    """Return what compares both sides in full, and notes that."""

    def check() -> ConsistencyReport:
        for _ in range(_ATTEMPTS):
            stores = rediscover()
            found = ConsistencyCheck(
                target,
                stores,
                names,
                limit=10,
                narrowed=narrowed,
                listener=view,
                stopping=stop,
                rediscover=rediscover,
            )
            report = run_recorded(found, target, names, narrowed=narrowed)
            if report.status == "identical" or report.differences:
                break
        return report

    return check
