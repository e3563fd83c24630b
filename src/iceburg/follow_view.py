"""What `iceburg-db follow` shows: one line while it works, a table when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from iceburg.migration.follow_report import FollowReport, FollowStatus

_PLAIN_INTERVAL: Final = 5.0


class FollowView:
    """The line on standard error: written over on a terminal, a new one every few seconds elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._told: tuple[str, str] = ("", "")
        self._told_at = 0.0
        self._width = 0

    def __enter__(self) -> FollowView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._width:
            self._console.file.write("\n")

    def hear(self, status: FollowStatus) -> None:
        """Show how a follower is."""
        line = status.line()
        if self._console.is_terminal:
            line = line[: self._console.width - 1]
            self._console.file.write(f"\r{line.ljust(self._width)}")
            self._console.file.flush()
            self._width = len(line)
            return
        now = time.monotonic()
        if (status.state, status.reason) != self._told or now - self._told_at >= _PLAIN_INTERVAL:
            self._told, self._told_at = (status.state, status.reason), now
            self._console.print(line, markup=False, soft_wrap=True)


def render_follow(console: Console, report: FollowReport, new_table: Callable[..., Table]) -> None:
    """Print what was done."""
    table = new_table("store", "kind", "applied", "pending")
    for source in report.sources:
        if source.applied or source.pending:
            table.add_row(source.source, source.kind, f"{source.applied:,}", f"{source.pending or 0:,}")
    if table.row_count:
        console.print(table)
        console.print()
    for source in report.problems:
        console.print(f"Problem: {source.source}: {source.problem}")
    delays = ""
    if report.delay_p95 is not None:
        delays = f", 95 % within {report.delay_p95:.3f} s"
    ended = f": {report.reason}" if report.reason else ""
    console.print(
        f"{report.status.capitalize()}{ended}. {report.applied:,} records applied in {report.seconds:.1f} s{delays}."
    )
