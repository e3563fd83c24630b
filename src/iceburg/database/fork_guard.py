"""No fork in the middle of a transaction: SQLite's locks and its memory of them do not come along into a child.

Whoever has connections open registers as a `ForkAware` and does its work within `active`. A fork then waits until that
work is done, has the idle connections closed, and goes on: the child inherits none, and opens its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol

PATIENCE = 60.0
"""Seconds for which a fork waits for the transactions of other threads."""


class ForkAware(Protocol):
    """What has something open that must not come along into a child."""

    def before_fork(self) -> None:
        """Close all that is idle; no other thread is at work, unless it took longer than `PATIENCE`."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget, without touching it, all that is still open: it is the parent's."""
        ...


class _State:
    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.working = 0
        self.forking = False
        self.mine = threading.local()


_state = _State()
_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def register(aware: ForkAware) -> None:
    """Have something told of forks while it lives."""
    with active():
        _aware.add(aware)


class active:  # noqa: N801 - used like a function; every call of the layer goes through it, a generator costs more
    """Do something during which this process must not fork; may be nested."""

    __slots__ = ("_depth", "_state")

    def __enter__(self) -> None:
        self._state = state = _state
        self._depth = depth = getattr(state.mine, "depth", 0)
        if not depth:
            with state.changed:
                # A nested use does not wait: the fork waits for the outer one.
                while state.forking:
                    state.changed.wait()
                state.working += 1
        state.mine.depth = depth + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        state = self._state
        state.mine.depth = self._depth
        if not self._depth and state is _state:  # not in a child
            with state.changed:
                state.working -= 1
                if state.forking:
                    state.changed.notify_all()


def _before() -> None:
    state = _state
    own = 1 if getattr(state.mine, "depth", 0) else 0
    with state.changed:
        while state.forking:  # by another thread
            state.changed.wait()
        state.forking = True
        state.changed.wait_for(lambda: state.working <= own, PATIENCE)
    for aware in list(_aware):
        aware.before_fork()


def _in_parent() -> None:
    with _state.changed:
        _state.forking = False
        _state.changed.notify_all()


def _in_child() -> None:
    global _state  # the locks of the old one may be held by threads that are not here
    _state = _State()
    for aware in list(_aware):
        aware.after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
