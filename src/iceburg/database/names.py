"""Names of schemas, tables and columns in PostgreSQL: at most 63 bytes, unique, none of PostgreSQL's own."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Final

LIMIT: Final = 63
# PostgreSQL documentation, page "System Columns".
_SYSTEM_COLUMNS: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_SYSTEM_SCHEMAS: Final = frozenset({"public", "information_schema"})


def shorten(name: str) -> str:
    """Cut a name to what PostgreSQL keeps of it; a hash of the whole name keeps it unique."""
    # What cannot be said in UTF-8 cannot be a name either; the hash tells such names apart.
    raw = name.encode("utf-8", "surrogateescape")
    plain = raw.decode("utf-8", "replace").replace("\0", "\ufffd") or "_"
    if plain == name and len(raw) <= LIMIT:
        return name
    suffix = "_" + hashlib.sha256(raw).hexdigest()[:8]
    return plain.encode()[: LIMIT - len(suffix)].decode("utf-8", "ignore") + suffix


def unique(name: str, taken: Collection[str]) -> str:
    """Return `name`, shortened, or a variant of it that is not `taken`."""
    found, number = shorten(name), 1
    while found in taken:
        number += 1
        found = shorten(f"{name}_{number}")
    return found


def column_names(names: Iterable[str], reserved: Collection[str] = ()) -> tuple[str, ...]:
    """Return the target names of a table's columns, in order."""
    found: list[str] = []
    for name in names:
        wanted = f"{name}_" if name in _SYSTEM_COLUMNS or name in reserved else name
        found.append(unique(wanted, found))
    return tuple(found)


def schema_name(store: str, prefix: str, taken: Collection[str]) -> str:
    """Name the schema of a SQLite file after it: its stem, or its path where the stem is taken."""
    path = PurePosixPath(store)
    found = shorten(_own(prefix + path.stem))
    return found if found not in taken else unique(_own(prefix + "_".join((*path.parent.parts, path.stem))), taken)


def _own(schema: str) -> str:
    """Change the name of a schema that PostgreSQL keeps for itself."""
    lower = schema.lower()
    # A bare "pg" might yet be given a number.
    reserved = lower in _SYSTEM_SCHEMAS or lower == "pg" or lower.startswith("pg_")
    return f"db_{schema}" if reserved or not schema else schema
