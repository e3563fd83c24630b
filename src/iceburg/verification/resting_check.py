"""Comparing a dataset of a store that rests: one without a log, which must not be written to meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from iceburg.errors import SourceError
from iceburg.records import DatasetReader, Store
from iceburg.sources.fingerprint import fingerprint
from iceburg.verification.consistency_report import Account
from iceburg.verification.report import RecordDifference
from iceburg.verification.target_look import TargetLook

_BATCH: Final = 5_000


class RestingCheck:
    """Compares one dataset.

    Parameters
    ----------
    store, state
        The store, and its fingerprint before anything of it was read.
    reader
        Of the dataset.
    target
        What there is of it.
    account
        Where it is noted.
    advance
        Told how many records were read.
    """

    def __init__(
        self,
        store: Store,
        state: str,
        reader: DatasetReader[Any],
        target: TargetLook,
        account: Account,
        advance: Callable[[int], None],
    ) -> None:
        self._store = store
        self._state = state
        self._reader = reader
        self._target = target
        self._account = account
        self._advance = advance

    def run(self) -> None:
        """Compare the records, then look for rows and kept values that no record has.

        Raises
        ------
        SourceError
            The store cannot be read to its end, or was written to; what was noted before that holds.
        """
        account = self._account
        originals = quarantined = 0
        try:
            self._target.begin_seen()
            for batch in self._reader.batches(size=_BATCH):
                look = self._target.look(batch.records)
                if look.differences:
                    self._require_rest()
                for differences in look.differences.values():
                    account.note(differences)
                originals += look.originals
                quarantined += look.quarantined
                account.compared += len(batch.records)
                keys = [self._target.mapping.row_key(record) for record in batch.records]
                self._target.add_seen([key for key in keys if key is not None])
                self._advance(len(batch.records))
            self._require_rest()
            self._find_surplus_rows()
        finally:
            self._target.end_seen()
        count = self._target.count()
        self._require_rest()
        account.source_rows = account.compared
        account.target_rows, account.quarantined_rows = count.rows, count.quarantined
        for what, expected, there in (
            ("originals", originals, count.originals),
            ("quarantined records", quarantined, count.quarantined),
        ):
            if expected != there:
                account.note([RecordDifference(account.dataset.name, "", f"({what})", expected, there)])

    def _find_surplus_rows(self) -> None:
        while True:
            _, suspects = self._target.unseen(_BATCH)
            for differences in self._target.look((), suspects).differences.values():
                self._account.note(differences)
            self._target.add_seen([s.row_key for s in suspects if s.row_key is not None])
            if len(suspects) < _BATCH:
                return

    def _require_rest(self) -> None:
        if fingerprint(self._store) != self._state:
            raise SourceError(
                "was written to while it was being compared, and its changes are not logged",
                where=self._store.name,
                hint="Stop the application meanwhile; or run `iceburg-db log install`, then `iceburg-db migrate`.",
            )
