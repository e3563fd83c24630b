"""Comparing one Chroma collection with the target while chromadb writes and somebody applies.

The target is as of the collection's mark in the position. What was read and what the target has are the same thing if
no operation since the earlier of their two marks names the record: only then does a difference count. Otherwise a
change is on its way, and the record is looked at again once the target has passed where the collection was. Where
chromadb has pruned its queue beyond the marks, nothing is known, and everything that differs is looked at again.

Rejected: comparing while the directory rests, which under writes it hardly ever does; holding the position while
comparing, which keeps whoever follows from everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from iceburg.database.catalogue import Dataset
from iceburg.database.chroma_applier import read_structure
from iceburg.database.positions import Position
from iceburg.errors import SourceError
from iceburg.mappings.identity import is_key_text, key_text
from iceburg.mappings.mapping import Row
from iceburg.records import ChromaRecord, decode_key
from iceburg.sources.chroma import ChromaStore
from iceburg.sources.chroma_changes import CollectionMark, read_ids, read_mark, read_records, read_touched
from iceburg.sources.chroma_reader import CollectionReader
from iceburg.verification.catching_up import CatchingUp
from iceburg.verification.consistency_report import Account
from iceburg.verification.records import WHOLE
from iceburg.verification.report import RecordDifference
from iceburg.verification.target_look import Identity, Look, RedefinedError, Suspect, TargetLook

_BATCH: Final = 2_000
# Seconds within which records that are written all the time have to hold still once, while they are compared.
_SETTLING: Final = 20.0
_COUNTS: Final = 10


class CollectionCheck:
    """Compares one collection.

    Parameters
    ----------
    directory, reader
        The open directory, and the reader of the collection.
    target
        What there is of it.
    position
        Of the directory.
    account
        Where it is noted.
    dataset
        Returns what the collection is in the target now; None once it is not there any more.
    advance
        Told how many records were read.
    """

    def __init__(
        self,
        directory: ChromaStore,
        reader: CollectionReader,
        target: TargetLook,
        position: CatchingUp,
        account: Account,
        dataset: Callable[[], Dataset | None],
        advance: Callable[[int], None],
    ) -> None:
        self._directory = directory
        self._reader = reader
        self._collection = reader.collection.id
        self._target = target
        self._position = position
        self._account = account
        self._dataset = dataset
        self._advance = advance

    def run(self) -> None:
        """Compare the records, then look for rows and kept values that no record has, then count.

        Raises
        ------
        RedefinedError
            The collection was deleted or renamed meanwhile.
        SourceError
            The directory cannot be read.
        """
        try:
            self._target.begin_seen()
            self._compare_records()
            self._find_surplus_rows()
            self._find_surplus_kept()
            self._count()
            self._require_same()
        except SourceError as error:
            if self._collection not in {collection.id for collection in self._directory.collections()}:
                raise RedefinedError from error
            raise
        finally:
            self._target.end_seen()

    def _compare_records(self) -> None:
        suspects: set[str] = set()
        before = read_mark(self._directory, self._collection)
        for batch in self._reader.batches(size=_BATCH):
            in_flight = self._judge(self._target.look(batch.records), before)
            self._account.compared += len(batch.records) - len(in_flight)
            suspects |= {record.id for record in batch.records if _text(record.id) in in_flight}
            keys = [self._target.mapping.row_key(record) for record in batch.records]
            self._target.add_seen([key for key in keys if key is not None])
            self._advance(len(batch.records))
            before = read_mark(self._directory, self._collection)
        self._settle(suspects)

    def _mark_in(self, position: Position | None) -> CollectionMark | None:
        """Return where the target is in the collection."""
        return None if position is None else read_structure(position.structure)[1].get(self._collection)

    def _judge(self, look: Look, since: CollectionMark) -> set[Identity]:
        """Note the differences of what was read at a mark or later; return what has a change on its way."""
        if not look.differences:
            return set()
        there = self._mark_in(look.position)
        touched = None
        if there is not None:
            earlier = CollectionMark(min(since.last, there.last), min(since.tables, there.tables))
            touched = read_touched(self._directory, self._collection, earlier)
        self._require_same()
        in_flight = set(look.differences)
        if touched is not None:
            in_flight &= {_text(identity) for identity in touched}
        for identity, differences in look.differences.items():
            if identity not in in_flight:
                self._account.note(differences)
        return in_flight

    def _require_same(self) -> None:
        now = self._dataset()
        if now is None or now.dataset_id != self._account.dataset.dataset_id:
            raise RedefinedError

    def _settle(self, suspects: Iterable[str]) -> None:
        """Look at records again, and at what should not be there, until nothing of them is on its way."""
        waiting = set(suspects)
        self._account.rechecked += len(waiting)
        deadline = time.monotonic() + _SETTLING
        while waiting:
            self._wait()
            mark, records = read_records(self._directory, self._reader, waiting)
            gone = waiting - {record.id for record in records}
            look = self._target.look(records, [self._suspect(identity) for identity in gone])
            in_flight = self._judge(look, mark)
            settled = {identity for identity in waiting if _text(identity) not in in_flight}
            self._account.compared += len(settled - gone)
            waiting -= settled
            if waiting and time.monotonic() > deadline:
                for identity in waiting:
                    self._account.note_unsettled(look.differences[_text(identity)])
                return

    def _suspect(self, identity: str) -> Suspect:
        return Suspect(_text(identity), self._target.mapping.row_key(_named(identity)))

    def _wait(self) -> None:
        """Wait until the target has everything that is in the collection now."""
        wanted = read_mark(self._directory, self._collection)

        def is_there(position: Position) -> bool:
            there = self._mark_in(position)
            return there is not None and there.last >= wanted.last

        self._position.wait(is_there, self._require_same)

    def _find_surplus_rows(self) -> None:
        """Look for the records of all rows that none of the records read had."""
        while True:
            _, suspects = self._target.unseen(_BATCH)
            self._settle(_identity(suspect.text) for suspect in suspects if suspect.text is not None)
            self._settle_unnamed({s.row_key: s for s in suspects if s.text is None and s.row_key is not None})
            self._target.add_seen([s.row_key for s in suspects if s.row_key is not None])
            # With fewer, these were all that there were; rows that came later are not of this check.
            if len(suspects) < _BATCH:
                return

    def _settle_unnamed(self, rows: dict[Row, Suspect]) -> None:
        """Settle rows that do not tell their record's id, such as one that PostgreSQL's text does not hold."""
        if not rows:
            return
        self._wait()
        mark, there = read_ids(self._directory, self._reader)
        named = {self._suspect(identity).row_key: identity for identity in there}
        self._settle(named[row] for row in rows.keys() & named.keys())
        look = self._target.look((), [suspect for row, suspect in rows.items() if row not in named])
        for row in self._judge(look, mark):
            self._account.note_unsettled(look.differences[row])

    def _find_surplus_kept(self) -> None:
        """Look for the records of all originals and quarantined records."""
        after = ""
        while texts := self._target.kept_keys(after, _BATCH):
            after = texts[-1]
            for text in texts:
                if not is_key_text(text):
                    what = "kept for what is no key of a record"
                    self._account.note([RecordDifference(self._account.dataset.name, text, WHOLE, None, what)])
            mark, there = read_ids(self._directory, self._reader)
            identities = map(_identity, filter(is_key_text, texts))
            absent = [self._suspect(identity) for identity in identities if identity not in there]
            if absent:
                in_flight = self._judge(self._target.look_for_kept(absent), mark)
                self._settle(_identity(suspect.text) for suspect in absent if suspect.text in in_flight)

    def _count(self) -> None:
        """Count both sides, at the same mark if there is such a moment."""
        account = self._account
        for attempt in range(_COUNTS):
            if attempt:
                self._wait()
            mark, there = read_ids(self._directory, self._reader)
            count = self._target.count()
            account.source_rows, account.target_rows = len(there), count.rows
            account.quarantined_rows = count.quarantined
            if self._mark_in(count.position) == mark:
                account.position = mark.last
                break
        expected = account.target_rows + account.quarantined_rows
        explained = account.difference_count or account.unsettled_count
        if account.position is not None and account.source_rows != expected and not explained:
            name = account.dataset.name
            account.note([RecordDifference(name, "", "(count)", account.source_rows, expected)])


def _text(identity: str) -> str:
    return key_text((identity,))


def _identity(text: str | None) -> str:
    return str(decode_key(text or "")[0])


def _named(identity: str) -> ChromaRecord:
    """Make a record of which only what identifies it counts."""
    return ChromaRecord(0, identity, None, None, None, "missing")
