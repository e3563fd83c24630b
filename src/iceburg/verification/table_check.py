"""Comparing one logged table with the target while the application writes and somebody applies.

The target is as of its position P. A record that was read when the log was at S is the same thing on both sides if no
entry between the two names it: only then does a difference count. Otherwise a change is on its way, and the record is
looked at again once P has passed, under the same rule. Entries may be pruned meanwhile; the position says up to where.
A record that is written all the time is read again and again, until P is the state of one of the readings.

Rejected: comparing only where P is S, which under writes it hardly ever is; holding the position's lock or a long read
transaction of the file, which would stop the application.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from iceburg.database.positions import Position
from iceburg.errors import SourceError
from iceburg.mappings.identity import is_key_text
from iceburg.mappings.mapping import Row
from iceburg.records import Batch
from iceburg.sources.sqlite_rows import TableReader
from iceburg.verification.catching_up import CatchingUp
from iceburg.verification.consistency_report import Account
from iceburg.verification.logged_file import FileMark, LoggedFile, LoggedTable, Records, Touched
from iceburg.verification.records import WHOLE
from iceburg.verification.report import RecordDifference
from iceburg.verification.target_look import Identity, Look, RedefinedError, Suspect, TargetLook

_BATCH: Final = 5_000
_ROUNDS: Final = 3
_SCANS: Final = 3
_COUNTS: Final = 5
# Of records that are written all the time: how many are read at once, for how many seconds, how many readings are kept.
_SAMPLED: Final = 100
_SAMPLING: Final = 5.0
_READINGS: Final = 200


class TableCheck:
    """Compares one table.

    Parameters
    ----------
    file, version
        The file, and what its structure must be known by.
    reader
        Of the table.
    target
        What there is of it.
    position
        Of the file.
    account
        Where it is noted.
    advance
        Told how many records were read.
    """

    def __init__(
        self,
        file: LoggedFile,
        version: str,
        reader: TableReader,
        target: TargetLook,
        position: CatchingUp,
        account: Account,
        advance: Callable[[int], None],
    ) -> None:
        self._file = file
        self._version = version
        self._reader = reader
        self._target = target
        self._position = position
        self._account = account
        self._advance = advance
        self._table = LoggedTable(account.dataset)
        self._suspects: list[Suspect] = []
        self._originals = self._quarantined = 0

    def run(self) -> None:
        """Compare the records, then look for rows and kept values that no record has, then count.

        Raises
        ------
        RedefinedError
            The table's structure, or what it is in the target, has changed meanwhile.
        SourceError
            The file cannot be read to its end.
        """
        try:
            self._target.begin_seen()
            start = self._compare_records()
            self._find_surplus_rows()
            self._find_surplus_kept(start)
            self._count()
        except SourceError as error:
            if self._file.mark().version != self._version:
                raise RedefinedError from error
            raise
        finally:
            self._target.end_seen()

    def _mark(self) -> FileMark:
        mark = self._file.mark()
        if mark.version != self._version:
            raise RedefinedError
        return mark

    def _wait(self) -> None:
        """Wait until the target has everything that is in the log now."""
        wanted = self._mark()
        self._position.wait(
            lambda position: position.position >= wanted.last and self._is_same_structure(position), self._mark
        )

    def _is_same_structure(self, position: Position) -> bool:
        """Whether the log tells all that happened to the table's records: VACUUM may give them new rowids without it.

        A position that a migration has set does not know the structure yet.
        """
        return position.structure == self._version or (position.structure == "" and not self._table.by_rowid)

    def _compare_records(self) -> FileMark:
        start = before = self._mark()
        for batch, mark in self._marked_batches():
            look = self._target.look(batch.records)
            self._originals += look.originals
            self._quarantined += look.quarantined
            in_flight = set(self._judge(look, before.last, mark.last))
            self._account.compared += len(batch.records) - len(in_flight)
            keys = [self._target.mapping.row_key(record) for record in batch.records]
            if in_flight:
                texts = map(self._table.text, batch.records)
                self._suspects += [Suspect(t, k) for t, k in zip(texts, keys, strict=True) if t in in_flight]
            self._target.add_seen([key for key in keys if key is not None])
            self._advance(len(batch.records))
            before = mark
            if len(self._suspects) >= _BATCH:
                self._settle_suspects()
        self._settle_suspects()
        return start

    def _marked_batches(self) -> Iterator[tuple[Batch[Any], FileMark]]:
        """Yield batches, each with where the file was afterwards."""
        for batch in self._reader.batches(size=_BATCH):
            yield batch, self._mark()

    def _judge(self, look: Look, since: int, until: int) -> list[Identity]:
        """Note the differences of what was read between two marks; return the records that have a change on its way."""
        if not look.differences:
            return []
        touched = self._touched_between(look.position, since, until)
        in_flight = []
        for identity, differences in look.differences.items():
            if touched is None or identity in touched:
                in_flight.append(identity)
            else:
                self._account.note(differences)
        return in_flight

    def _touched_between(self, position: Position | None, since: int, until: int) -> Touched | None:
        """Return the records that are not the same thing on both sides; None where that cannot be known."""
        if position is None or not self._is_same_structure(position):
            return None
        first, last = min(since, position.position), max(until, position.position)
        if first == last:
            return Touched()
        touched = self._file.touched(self._table, first, last)
        # Asked after the log was read: what was pruned before that is not above it.
        now = self._position.position()
        if now is None or now.epoch != position.epoch or now.pruned > first:
            return None
        return touched

    def _settle_suspects(self) -> None:
        suspects, self._suspects = self._suspects, []
        self._settle(suspects)

    def _settle(self, suspects: Sequence[Suspect]) -> None:
        """Look at records again until nothing of them is on its way."""
        self._account.rechecked += len(suspects)
        waiting = {suspect.text: suspect for suspect in suspects if suspect.text is not None}
        for _ in range(_ROUNDS):
            if not waiting:
                return
            self._wait()
            records = self._file.records(self._table, list(waiting))
            self._settle_with(records, waiting)
        for texts in _pieces(list(waiting), _SAMPLED):
            self._sample({text: waiting[text] for text in texts})

    def _settle_with(self, records: Records, waiting: dict[str, Suspect]) -> Look:
        """Compare what was read of suspects with what there is now; take those that are settled out of `waiting`."""
        absent = [self._with_row_key(s, records.gone) for t, s in waiting.items() if t not in records.there]
        there = [record for text, record in records.there.items() if text in waiting]
        look = self._target.look(there, absent)
        in_flight = set(self._judge(look, records.mark.last, records.mark.last))
        self._account.compared += len(there) - len(in_flight & records.there.keys())
        for text in waiting.keys() - in_flight:
            del waiting[text]
        return look

    def _sample(self, waiting: dict[str, Suspect]) -> None:
        """Settle records that are written all the time.

        They are read again and again, until the target has just the state of one of these readings.
        """
        readings: dict[int, Records] = {}
        seen: dict[Identity, list[RecordDifference]] = {}
        deadline = time.monotonic() + _SAMPLING
        self._position.watch()
        while waiting and time.monotonic() < deadline:
            records = self._file.records(self._table, list(waiting))
            readings[records.mark.last] = records
            while len(readings) > _READINGS:
                del readings[next(iter(readings))]
            position = self._position.step()
            at = -1 if position is None else position.position
            if at in readings:
                seen = self._settle_with(readings[at], waiting).differences
        if waiting and not seen:
            seen = self._target.look(list(records.there.values())).differences
        for text in waiting:
            gone = RecordDifference(self._account.dataset.name, text, WHOLE, None, None)
            self._account.note_unsettled(seen.get(text, [gone]))

    def _with_row_key(self, suspect: Suspect, gone: dict[str, Any]) -> Suspect:
        if suspect.row_key is not None or suspect.text not in gone:
            return suspect
        return Suspect(suspect.text, self._target.mapping.row_key(gone[suspect.text]))

    def _find_surplus_rows(self) -> None:
        """Look for the records of all rows that none of the records read had."""
        while True:
            _, suspects = self._target.unseen(_BATCH)
            self._settle([suspect for suspect in suspects if suspect.text is not None])
            self._settle_unnamed({s.row_key for s in suspects if s.text is None and s.row_key is not None})
            self._target.add_seen([s.row_key for s in suspects if s.row_key is not None])
            # With fewer, these were all that there were; rows that came later are not of this check.
            if len(suspects) < _BATCH:
                return

    def _settle_unnamed(self, rows: set[Row]) -> None:
        """Settle rows that do not tell their record's key: their records are looked for among all of the table."""
        self._account.rechecked += len(rows)
        for _ in range(_SCANS):
            if not rows:
                return
            self._wait()
            since = self._mark()
            found = self._find(rows)
            until = self._mark()
            self._account.rechecked -= len(found)
            self._settle([Suspect(text, row) for row, text in found.items()])
            look = self._target.look((), [Suspect(None, row) for row in rows - found.keys()])
            rows = {row for row in self._judge(look, since.last, until.last) if not isinstance(row, str)}
        for row in rows:
            self._account.note_unsettled(look.differences[row])

    def _find(self, rows: set[Row]) -> dict[Row, str]:
        found = {}
        for batch in self._reader.batches(size=_BATCH):
            for record in batch.records:
                row = self._target.mapping.row_key(record)
                if row in rows:
                    found[row] = self._table.text(record)
        return found

    def _find_surplus_kept(self, start: FileMark) -> None:
        """Look for the records of all originals and quarantined records."""
        count = self._target.count()
        kept = (count.originals, count.quarantined)
        if kept == (0, 0) or (kept == (self._originals, self._quarantined) and self._rested(start, count.position)):
            return
        after = ""
        while texts := self._target.kept_keys(after, _BATCH):
            after = texts[-1]
            keys = [text for text in texts if is_key_text(text)]
            self._account.note(list(self._nobodys(set(texts) - set(keys))))
            records = self._file.records(self._table, keys)
            absent = [self._with_row_key(Suspect(t, None), records.gone) for t in keys if t not in records.there]
            look = self._target.look_for_kept(absent)
            in_flight = set(self._judge(look, records.mark.last, records.mark.last))
            self._settle([suspect for suspect in absent if suspect.text in in_flight])

    def _rested(self, start: FileMark, position: Position | None) -> bool:
        """Whether nothing was written since the beginning, and the target had it all."""
        return position is not None and position.position == start.last == self._mark().last

    def _nobodys(self, texts: Iterable[str]) -> Iterator[RecordDifference]:
        for text in sorted(texts):
            name = self._account.dataset.name
            yield RecordDifference(name, text, WHOLE, None, "kept for what is no key of a record")

    def _count(self) -> None:
        """Count both sides, at the same position if there is such a moment."""
        account = self._account
        for attempt in range(_COUNTS):
            if attempt:
                self._wait()
            mark, account.source_rows = self._file.count(self._table)
            count = self._target.count()
            account.target_rows, account.quarantined_rows = count.rows, count.quarantined
            at = count.position
            if at is not None and at.position == mark.last:
                account.position = mark.last
                break
            if self._touched_between(at, mark.last, mark.last) == Touched():
                account.position = mark.last
                break
        expected = account.target_rows + account.quarantined_rows
        explained = account.difference_count or account.unsettled_count
        if account.position is not None and account.source_rows != expected and not explained:
            account.note([RecordDifference(account.dataset.name, "", "(count)", account.source_rows, expected)])


def _pieces(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
