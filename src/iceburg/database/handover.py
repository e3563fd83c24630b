"""The handover: how the processes of the unified layer learn that PostgreSQL alone is written, without losing a write.

`iceburg-db finalize` puts a marker into the data directory before it fences the files, and writes into it when the
phase is set. A process looks for the marker before each call; that costs a microsecond.

- No marker: nothing has happened. A write that begins now either commits before its file is fenced, and is in the log
  that is then applied to its end; or it meets the fence, and nothing was written.
- The marker says ``closing``: PostgreSQL is asked for the phase. Until it is ``finalized``, reads and writes go where
  they went. A write that meets the fence waits for the end.
- The marker says ``finalized``, or PostgreSQL does: from then on, for good, this process asks PostgreSQL alone.

No write is acknowledged by PostgreSQL alone before the phase is set, and no read that begins after that comes from a
file: the marker was there before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from iceburg.database.flag import write_text
from iceburg.errors import FencedError, SourceBusyError
from iceburg.sources.discovery import OWN_DIRECTORY

_NAME: Final = "handover.json"
# Fencing takes milliseconds a file, and a write that is longer on its way than this has an operator to look after it.
PATIENCE: Final = 30.0
_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Marker:
    """What `finalize` has left in a data directory.

    Attributes
    ----------
    state
        ``closing``, and from when the phase is set ``finalized``.
    since
        When the fencing began, as text.
    sources
        Names of the stores that are fenced, or about to be.
    """

    state: Literal["closing", "finalized"]
    since: str
    sources: tuple[str, ...] = ()


def marker_path(data_dir: Path) -> Path:
    """Return where the marker of an installation is, if there is one."""
    return data_dir / OWN_DIRECTORY / _NAME


def read_marker(data_dir: Path) -> Marker | None:
    """Return the marker; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(marker_path(data_dir).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return Marker(found["state"], found["since"], tuple(found["sources"]))


def write_marker(data_dir: Path, state: Literal["closing", "finalized"], since: str, sources: Sequence[str]) -> None:
    """Write the marker, whole or not at all, durably."""
    text = json.dumps({"state": state, "since": since, "sources": list(sources)}, indent=2) + "\n"
    write_text(marker_path(data_dir), text)


def remove_marker(data_dir: Path) -> None:
    """Remove the marker."""
    marker_path(data_dir).unlink(missing_ok=True)


class Handover:
    """What one process knows of it; cheap to ask.

    Parameters
    ----------
    data_dir
        The installation.
    ask
        Asks PostgreSQL whether the phase is ``finalized``; raises where it cannot be asked.
    """

    def __init__(self, data_dir: Path, ask: Callable[[], bool]) -> None:
        self._data_dir = data_dir
        self._path = str(marker_path(data_dir))
        self._ask = ask
        self._over = False

    def is_over(self) -> bool:
        """Whether PostgreSQL alone is written.

        Raises
        ------
        SourceBusyError
            The files are being fenced, and PostgreSQL, which would know, cannot be asked.
        """
        if self._over:
            return True
        if not os.access(self._path, os.F_OK):  # Path.exists makes an exception of each file that is not there
            return False
        marker = read_marker(self._data_dir)
        if marker is None:
            return False
        self._over = marker.state == "finalized" or self._ask_phase()
        return self._over

    def note_over(self) -> None:
        """Take it from PostgreSQL that it is over."""
        self._over = True

    def wait(self, error: FencedError) -> bool:
        """Wait, after a write has met a fence, until it is over; return False if the fence was taken away.

        Raises
        ------
        SourceBusyError
            That takes too long: nothing was written.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            # Without a marker, as in files that were put back from an archive, the phase tells.
            if self.is_over() or (read_marker(self._data_dir) is None and self._ask_phase()):
                self._over = True
                return True
            if read_marker(self._data_dir) is None:
                return False
            if time.monotonic() > deadline:
                raise SourceBusyError(
                    "is being finalized, and that has not come to an end",
                    where=error.where,
                    hint="Nothing was written. Run `iceburg-db finalize` again, or `iceburg-db finalize --cancel`.",
                ) from error
            time.sleep(_POLL)

    def _ask_phase(self) -> bool:
        try:
            return self._ask()
        except Exception as error:
            raise SourceBusyError(
                "is being finalized, and PostgreSQL, which would know how far that is, cannot be asked",
                where=str(self._data_dir),
                hint=f"Nothing was written; try again. {error}",
            ) from error
