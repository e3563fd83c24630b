"""What a reader of a file keeps to while an application writes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias


class Pacing(Protocol):
    """How gently one file is read.

    Attributes
    ----------
    batch
        Records that one read has at most.
    """

    batch: int

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wait until the file may be read; the read is done within."""
        ...


MakePacing: TypeAlias = "Callable[[Path], Pacing]"
"""Makes what the readers of one file keep to."""
