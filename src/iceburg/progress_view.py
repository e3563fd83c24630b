"""How far a command is, on standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from iceburg.migration.build_progress import Build
    from iceburg.migration.worker import Advance

_PLAIN_INTERVAL: Final = 5.0
# An index of which nothing was heard for so many seconds is there.
_GONE: Final = 3.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="dim")


class ProgressView:
    """Progress on standard error: bars on a terminal, plain lines elsewhere; a context manager and a `Listener`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                _Rate(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._built: dict[str, float] = {}
        self._started = self._told = time.monotonic()
        self._seen = 0

    def __enter__(self) -> ProgressView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def phase(self, text: str) -> None:
        """Show what is done now."""
        self._console.print(text, markup=False, style="dim", soft_wrap=True)

    def expect(self, dataset: str, rows: int, done: int) -> None:
        """Show a dataset that is about to be gone through."""
        self._total[dataset] = rows
        self._done[dataset] = done
        if self._bars is not None and rows:
            if dataset in self._tasks:
                self._bars.reset(self._tasks[dataset], total=rows, completed=done)
            else:
                self._tasks[dataset] = self._bars.add_task(dataset, total=rows, completed=done)

    def advance(self, event: Advance) -> None:
        """Show that a dataset has got further."""
        self._done[event.dataset] = self._done.get(event.dataset, 0) + event.seen
        self._seen += event.seen
        if self._bars is not None:
            task = self._tasks.get(event.dataset)
            if task is not None:
                self._bars.advance(task, event.seen)
                if self._done[event.dataset] >= self._total[event.dataset]:
                    self._bars.update(task, visible=False)
            return
        now = time.monotonic()
        if now - self._told >= _PLAIN_INTERVAL:
            self._told = now
            self._print_line(now)

    def build(self, build: Build) -> None:
        """Show how far an index is."""
        share, now = build.share or 0.0, time.monotonic()
        if self._bars is not None:
            if build.what not in self._tasks:
                self._tasks[build.what] = self._bars.add_task(build.what, total=100)
            # A build goes through several phases, each from the beginning.
            description = f"{build.what}: {build.phase}"
            self._bars.update(self._tasks[build.what], completed=100 * share, description=description, visible=True)
            self._built[build.what] = now
            for what, heard in self._built.items():
                if now - heard > _GONE:
                    self._bars.update(self._tasks[what], visible=False)
        elif now - self._told >= _PLAIN_INTERVAL:
            self._told = now
            self._console.print(f"{build.what}: {build.phase}, {share:.0%}", markup=False)

    def _print_line(self, now: float) -> None:
        done, total = sum(self._done.values()), sum(self._total.values())
        rate = self._seen / (now - self._started)
        left = f", {(total - done) / rate:,.0f} s left" if rate and total > done else ""
        self._console.print(f"{done:,} of {total:,} records, {rate:,.0f}/s{left}", markup=False)
