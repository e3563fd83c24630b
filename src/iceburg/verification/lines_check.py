"""Comparing a JSONL file with the target while lines are appended and somebody applies them.

A line that is finished never changes, and the target has it once its position is behind it. So each batch of lines is
compared when the position has passed it, and every difference counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, LiteralString

import psycopg

from iceburg.database.jsonl_applier import JsonlState, jsonl_state
from iceburg.database.positions import Position
from iceburg.database.schema import SchemaNames
from iceburg.mappings.mapping import Row
from iceburg.records import Key, Line, Store
from iceburg.sources.jsonl import JsonlFile
from iceburg.verification.catching_up import CatchingUp
from iceburg.verification.consistency_report import Account
from iceburg.verification.records import WHOLE
from iceburg.verification.report import RecordDifference
from iceburg.verification.target_look import RedefinedError, TargetLook

_BATCH: Final = 5_000
# A key is a JSON text such as [1694].
_COUNT: Final[LiteralString] = """
SELECT (SELECT count(*) FROM {data}.telemetry WHERE dataset_id = %(id)s AND byte_offset < %(end)s),
       (SELECT count(*) FROM {state}.originals WHERE dataset_id = %(id)s
        AND coalesce(substring(record_key FROM '^\\[(\\d+)\\]$')::numeric, 0) < %(end)s),
       (SELECT count(*) FROM {state}.quarantine WHERE dataset_id = %(id)s
        AND coalesce(substring(record_key FROM '^\\[(\\d+)\\]$')::numeric, 0) < %(end)s)
"""


class LinesCheck:
    """Compares one file.

    Parameters
    ----------
    store
        The file.
    connection, names
        Of the target.
    target
        What there is of the file.
    position
        Of the file.
    account
        Where it is noted.
    advance
        Told how many lines were read.
    """

    def __init__(
        self,
        store: Store,
        connection: psycopg.Connection,
        names: SchemaNames,
        target: TargetLook,
        position: CatchingUp,
        account: Account,
        advance: Callable[[int], None],
    ) -> None:
        self._store = store
        self._connection = connection
        self._names = names
        self._target = target
        self._position = position
        self._account = account
        self._advance = advance
        self._reader = JsonlFile(store.path, store.name)
        self._last: Key | None = None
        self._end = 0
        self._originals = self._quarantined = 0

    def run(self) -> None:
        """Compare the lines that are there, then look for rows that no line has, then count.

        Raises
        ------
        RedefinedError
            The file was cut or replaced meanwhile.
        SourceError
            It cannot be read.
        """
        try:
            self._target.begin_seen()
            self._compare_lines(set())
            self._find_surplus_rows()
            self._count()
        finally:
            self._target.end_seen()

    def _state(self) -> JsonlState:
        """Return where the file is, and see that it still is the one that is applied."""
        state, position = jsonl_state(self._store.path), self._position.position()
        if state is None or position is None or state.log_id != position.log_id or state.end < position.position:
            raise RedefinedError
        return state

    def _compare_lines(self, missing: set[Row]) -> None:
        """Compare the lines from where the last call ended; take the rows that they have out of `missing`."""
        for batch in self._reader.batches(after=self._last, size=_BATCH):
            lines: list[Line] = []
            for line in batch.records:
                if line.terminator:
                    lines.append(line)
                # What is not finished is not there yet; a migration may have taken it all the same.
                missing.discard(self._target.mapping.row_key(line) or ())
            if lines:
                self._compare(lines)

    def _compare(self, lines: list[Line]) -> None:
        end = lines[-1].offset
        before = self._position.position()
        if before is not None:
            self._account.rechecked += sum(line.offset >= before.position for line in lines)
        self._position.wait(lambda position: position.position > end, self._state)
        look = self._target.look(lines)
        if look.differences:
            self._state()
            for differences in look.differences.values():
                self._account.note(differences)
        self._originals += look.originals
        self._quarantined += look.quarantined
        self._account.compared += len(lines)
        self._target.add_seen([key for line in lines if (key := self._target.mapping.row_key(line)) is not None])
        self._advance(len(lines))
        self._last, self._end = (end,), end + len(lines[-1].raw) + len(lines[-1].terminator)

    def _find_surplus_rows(self) -> None:
        while True:
            _, suspects = self._target.unseen(_BATCH)
            missing = {suspect.row_key: suspect for suspect in suspects if suspect.row_key is not None}
            rows = set(missing)
            if rows:
                # Lines that came after the last one read, up to the position that the rows are as of and further.
                self._compare_lines(rows)
                self._state()
            for row in rows:
                key = missing[row].text or ""
                text = "a row of which there is no record"
                self._account.note([RecordDifference(self._account.dataset.name, key, WHOLE, None, text)])
            self._target.add_seen(list(missing))
            if len(suspects) < _BATCH:
                return

    def _count(self) -> None:
        """Count what is before the end of the last line read: that does not change any more."""
        account = self._account
        parameters = {"id": account.dataset.dataset_id, "end": self._end}
        with self._target.snapshot():
            found = self._connection.execute(self._names.format(_COUNT), parameters).fetchone()
        assert found is not None  # noqa: S101 - a SELECT without FROM has a row
        account.source_rows, account.position = account.compared, self._end
        account.target_rows, originals, account.quarantined_rows = found
        for what, expected, there in (
            ("originals", self._originals, originals),
            ("quarantined records", self._quarantined, account.quarantined_rows),
        ):
            if expected != there:
                account.note([RecordDifference(account.dataset.name, "", f"({what})", expected, there)])


def is_applied(position: Position, state: JsonlState | None) -> bool:
    """Whether a position is one in the file as it is now."""
    return state is not None and position.log_id == state.log_id and position.position <= state.end
