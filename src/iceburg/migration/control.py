"""The control file: while it is there, followers and live migrations of the installation pause.

It is ``DATA_DIR/.iceburg/paused``. `iceburg-db follow --pause` and `--resume` make it and remove it, and so may anybody
else. It needs no PostgreSQL, and works while that is away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iceburg.errors import UsageError
from iceburg.sources.discovery import OWN_DIRECTORY

_NAME: Final = "paused"


@dataclass(frozen=True, slots=True)
class ControlFile:
    """The control file of one installation.

    Attributes
    ----------
    path
        Where it is.
    """

    path: Path

    @classmethod
    def of(cls, data_dir: Path) -> ControlFile:
        """Return the control file of an installation."""
        return cls(data_dir.absolute() / OWN_DIRECTORY / _NAME)

    @property
    def is_there(self) -> bool:
        """Whether whoever keeps to it pauses."""
        return self.path.exists()

    def make(self) -> bool:
        """Pause; return whether that changes anything.

        Raises
        ------
        UsageError
            The file cannot be made.
        """
        try:
            self.path.parent.mkdir(mode=0o755, exist_ok=True)
            self.path.open("x").close()
        except FileExistsError:
            return False
        except OSError as error:
            raise UsageError(f"cannot be made: {error.strerror}", where=str(self.path)) from error
        return True

    def remove(self) -> bool:
        """Go on; return whether that changes anything.

        Raises
        ------
        UsageError
            The file cannot be removed.
        """
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UsageError(f"cannot be removed: {error.strerror}", where=str(self.path)) from error
        return True
