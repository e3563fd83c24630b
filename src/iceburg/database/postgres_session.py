"""PostgreSQL as the application uses it: datasets by name, and reads that know as of which position they are.

Every read is one statement that also says where the source's position is, in the same snapshot. With a gate (dual
write) the read counts only if that position is the file's own: so a process reads its own writes, and those of any
other writer of the file, or learns that it has to ask SQLite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, LiteralString, TypeAlias, TypeVar

import psycopg

from iceburg.database.positions import Mark
from iceburg.database.postgres_answer import Answer, Bound, Columns, Fetched, ShortAnswer
from iceburg.database.postgres_datasets import ATTEMPTS
from iceburg.database.postgres_failures import BehindError, LostError, StaleError
from iceburg.database.postgres_pool import AT_ONCE
from iceburg.database.postgres_writes import PostgresWrites
from iceburg.database.read_statement import FIND, HEAD, SEPARATOR, whole_read
from iceburg.database.schema import SchemaNames
from iceburg.database.short_statement import SOME_APART, ShortRead, ShortStatement, short_statement
from iceburg.mappings.identity import key_text

__all__ = ["BehindError", "Gate", "Mark", "PostgresSession"]

T = TypeVar("T")

# Undefined table, undefined column, what a statement prepared for other columns says, or one that was forgotten.
_CHANGED: Final = ("42P01", "42703", "0A000", "26000")
# Each costs some 0.03 ms at every read that has to put them in order.
_MANY: Final = 1_000
# Originals asked for by key come with each row: with many of both they would not fit into memory.
_FEW: Final = 100
# A short read that was refused is not tried again for so long: it would be again. Seconds.
_REFUSED: Final = 1.0

_KEYS_OF: Final[LiteralString] = """
SELECT DISTINCT record_key FROM {state}.originals WHERE dataset_id = %s AND field = ANY(%s) LIMIT %s
"""
_SELECT_ORIGINALS: Final[LiteralString] = """
SELECT record_key, field, storage_class, value FROM {state}.originals
WHERE dataset_id = %(dataset)s AND record_key = ANY(%(keys)s)
UNION ALL
SELECT record_key, field, storage_class, value FROM {state}.originals
WHERE dataset_id = %(dataset)s AND record_key IN
    (SELECT record_key FROM {state}.originals WHERE dataset_id = %(dataset)s AND field = ANY(%(key_fields)s))
"""
_SELECT_NAMELESS: Final[LiteralString] = """
SELECT record_key, field, storage_class, value FROM {state}.originals
WHERE dataset_id = %s AND starts_with(record_key, '[null,')
"""


Gate: TypeAlias = Callable[[str], Mark | None]
"""Says, for a source's name, what a read of it needs; None: whatever is there is right."""


class PostgresSession(PostgresWrites):
    """One target, its datasets, and what of it may be believed.

    Parameters
    ----------
    dsn
        Connection string.
    names
        Of the target's schemas.
    gate
        See `Gate`; None: PostgreSQL alone, whatever is there is right.
    options
        See `PostgresPool`.
    """

    def __init__(self, dsn: str, names: SchemaNames, gate: Gate | None = None, **options: Any) -> None:
        super().__init__(dsn, names, **options)
        self._gate = gate

    def rows(
        self, name: str, body: LiteralString, parameters: Sequence[Any] = (), *, odd: Sequence[str] = ()
    ) -> list[Fetched]:
        """Run a SELECT over a dataset's table and return its rows.

        Parameters
        ----------
        name
            The dataset.
        body
            A SELECT; ``{table}`` stands for the table, ``{dataset}`` for its number, ``{columns}`` for the mapping's
            columns, qualified with ``t``, ``{owned}`` for the condition that a row of ``t`` is the dataset's.
            Parameters are $1, $2. It must order its rows, and give at least one column that is never NULL, first.
        parameters
            Values for $1, $2.
        odd
            Source fields on which the SELECT decides; where PostgreSQL holds a substitute for one of their values, the
            read is refused with a gate.

        Raises
        ------
        BehindError
            The gate needs another position.
        """
        return self._unless_odd(self.ask(name, body, parameters, odd=odd)).rows

    def records(
        self, name: str, tail: LiteralString, parameters: Sequence[Any] = (), *, odd: Sequence[str] = ()
    ) -> list[Columns]:
        """Return records of a dataset as the columns of its source, restored.

        Parameters
        ----------
        name
            The dataset.
        tail
            See `find`.
        parameters
            Values for $1, $2.
        odd
            As for `rows`.
        """
        answer = self._unless_odd(self.find(name, tail, parameters, odd=odd))
        return [answer.columns(row) for row in answer.rows]

    def _unless_odd(self, answer: Answer) -> Answer:
        if answer.odd and self._gate is not None:
            raise BehindError("PostgreSQL does not hold all of it as it is", where=answer.bound.dataset.name)
        return answer

    def find(
        self,
        name: str,
        tail: LiteralString,
        parameters: Sequence[Any] = (),
        *,
        odd: Sequence[str] = (),
        keys: Sequence[str] | None = None,
    ) -> Answer:
        """Return rows of the mapping's columns, and the originals of their records.

        Parameters
        ----------
        name
            The dataset.
        tail
            What follows ``SELECT columns FROM table AS t WHERE owned AND``: a condition, an order, a limit.
        parameters
            Values for $1, $2.
        odd
            Source fields of which is to be said whether there are originals.
        keys
            The `key_text` of every record that can be found, if that is known: spares a look.
        """
        return self.find_by(name, FIND + tail, parameters, odd, keys)

    def find_by(
        self,
        name: str,
        body: LiteralString,
        parameters: Sequence[Any] = (),
        odd: Sequence[str] = (),
        keys: Sequence[str] | None = None,
        odd_if: LiteralString = "",
    ) -> Answer:
        """Do as `find` does, for a whole SELECT of the mapping's columns; `odd_if` is a further condition for odd."""
        originals: Sequence[str] | bool = True
        if keys is not None and len(keys) > _FEW:
            keys = None
        if keys is not None and self.bound(name).has_originals:
            originals = keys
        answer = self.ask(name, body, parameters, odd=odd, odd_if=odd_if, originals=originals)
        if answer.kept and keys is not None:
            answer.bound.has_originals = True
            answer = self.ask(name, body, parameters, odd=odd, odd_if=odd_if, originals=keys)
        if answer.kept and answer.rows:
            if not self.is_pinned:
                return self.in_snapshot(lambda: self.find_by(name, body, parameters, odd, keys, odd_if))
            self._add_originals(answer)
        return answer

    def short(
        self, name: str, read: ShortRead, parameters: Sequence[Any] = (), beside: str | None = None
    ) -> ShortAnswer | None:
        """Answer a short read; None where only a whole one can tell, or be refused.

        Parameters
        ----------
        name
            The dataset.
        read
            What is asked.
        parameters
            Values for $1, $2.
        beside
            Another dataset of the same source, of which the read depends.

        Raises
        ------
        BehindError
            The gate needs another position.
        TargetError
            PostgreSQL cannot be asked.
        """
        if self.is_pinned:
            return None  # a whole read says more, and there are several of them
        bound = self._bound.get(name) or self.bound(name)
        wanted = read, read in bound.apart
        statement: ShortStatement | None = bound.statements.get(wanted)
        if statement is None:
            statement = bound.statements[wanted] = self._short_statement(bound, read, beside, wanted[1])
        if read in bound.refused and time.monotonic() < bound.refused[read]:
            return None
        gate = self._gate
        asking = None if gate is None else _Asking(self, bound.dataset.source)
        started = time.monotonic()
        try:
            with self.connection() as connection:
                if asking is not None:
                    asking.connection = connection
                found = self.reader(connection).fetch(statement.text, parameters, asking)
        except LostError:
            if time.monotonic() - started > AT_ONCE:
                raise
            return None
        except psycopg.Error as error:
            if error.sqlstate not in _CHANGED:
                raise
            found = []
        if not found:
            # It is another dataset than it was: it is looked at anew.
            self.forget()
            return None
        if asking is not None and asking.need is not None:
            self._believe(name, bound, asking.need, *statement.state_of(found))
        refused = statement.refusal_of(found)
        if refused == SOME_APART:
            bound.apart.add(read)
            return self.short(name, read, parameters, beside)
        if refused:
            bound.refused[read] = time.monotonic() + _REFUSED
            return None
        if read.together:
            self._note_state(statement.state_of(found))
        answer = statement.answer(bound, found)
        if answer is not None and statement.apart and not answer.apart:
            bound.apart.discard(read)
        return answer

    def _short_statement(self, bound: Bound, read: ShortRead, beside: str | None, apart: bool) -> ShortStatement:
        other = None if beside is None else self.bound(beside)
        return short_statement(self.names, bound, read, other, gated=self._gate is not None, apart=apart)

    def find_odd(self, name: str, fields: Sequence[str]) -> Answer:
        """Return the rows of records that have an original in one of some fields; within a snapshot.

        Raises
        ------
        BehindError
            There are very many, and SQLite can be asked.
        """
        bound = self.bound(name)
        limit = None if self._gate is None else _MANY
        with self.connection() as connection:
            found = connection.execute(
                self.names.format(_KEYS_OF), (bound.dataset.dataset_id, list(fields), limit)
            ).fetchall()
        if len(found) == limit:
            raise BehindError("PostgreSQL does not hold all of it as it is", where=name)
        keys = [key for (key,) in found]
        return self.find(name, "t.id = ANY($1::text[]::uuid[])", (bound.row_ids(keys),), keys=keys)

    def _add_originals(self, answer: Answer) -> None:
        bound, mapping = answer.bound, answer.bound.mapping
        number = bound.dataset.dataset_id
        keys = [mapping.key(answer.record(row)) for row in answer.rows]
        wanted = {"dataset": number, "keys": list(map(key_text, keys)), "key_fields": list(bound.key_fields)}
        with self.connection() as connection:
            found = connection.execute(self.names.format(_SELECT_ORIGINALS), wanted).fetchall()
            if any(None in key for key in keys):
                # What identifies these besides is not in their rows.
                found += connection.execute(self.names.format(_SELECT_NAMELESS), (number,)).fetchall()
        answer.originals = bound.originals(found)

    def ask(
        self,
        name: str,
        body: LiteralString,
        parameters: Sequence[Any] = (),
        *,
        odd: Sequence[str] = (),
        odd_if: LiteralString = "",
        originals: Sequence[str] | bool = False,
    ) -> Answer:
        """Run a SELECT as `rows` does, and say what else is known.

        Parameters
        ----------
        name, body, parameters
            As for `rows`.
        odd
            Source fields of which is to be said whether there are originals.
        odd_if
            A condition under which that is said, too.
        originals
            Whether it is to be said if there are any at all; or the `key_text` of records, of which they are read.
        """
        for _ in range(ATTEMPTS):
            bound = self.bound(name)
            need = self.need(bound.dataset.source)
            try:
                found = self._run(bound, body, parameters, (tuple(odd), odd_if), originals)
            except StaleError:
                if self.is_pinned:
                    raise
                self.forget()
                continue
            log_id, position, _, quarantined, inexact, kept, *parts = found[0][:HEAD]
            if need is not None:
                self._believe(name, bound, need, log_id, position)
                if quarantined:
                    raise BehindError("PostgreSQL does not hold all of it", where=name)
            rows = [row[HEAD:] for row in found if row[HEAD] is not None]
            answer = Answer(bound, rows, inexact)
            self._note_state((log_id,) if self._gate is None else (log_id, position))
            if isinstance(originals, bool):
                answer.kept = kept
            elif kept is not None:
                answer.originals = bound.originals(list(zip(kept, *parts, strict=True)))
            return answer
        raise BehindError("its definition changes again and again", where=name)

    def _believe(self, name: str, bound: Bound, need: Mark, log_id: str | None, position: int | None) -> None:
        """Refuse an answer as of a position that is not the one needed, nor one that the source has come to since."""
        if log_id != need.log_id or position is None or position < need.position:
            raise BehindError(f"PostgreSQL is at {position}, SQLite at {need.position}", where=name)
        if position > need.position and not self._has(bound.dataset.source, position):
            raise BehindError(f"the file ends before {position}, where PostgreSQL is", where=name)

    def _note_state(self, state: tuple[Any, ...]) -> None:
        """Note what an answer is as of: reads of the same state of a source have the same."""
        seen: set[object] | None = getattr(self._mine, "seen", None)
        if seen is not None:
            seen.add(state)

    def need(self, source: str) -> Mark | None:
        """Return what a read needs: of several that belong together, what the first of them does."""
        if self._gate is None:
            return None
        needs: dict[str, Mark | None] | None = getattr(self._mine, "needs", None)
        if needs is None:
            return self._gate(source)
        if source not in needs:
            needs[source] = self._gate(source)
        return needs[source]

    def _has(self, source: str, position: int) -> bool:
        """Whether a source goes on to a position: written meanwhile, and not cut or put back to an older state."""
        now = None if self._gate is None else self._gate(source)
        return now is None or now.position >= position

    def in_snapshot(self, call: Callable[[], T]) -> T:
        """See `PostgresPool.in_snapshot`; called anew where a definition has changed meanwhile."""
        if self.is_pinned:
            return call()
        for _ in range(ATTEMPTS):
            needs, self._mine.needs = getattr(self._mine, "needs", None), {}
            try:
                return super().in_snapshot(call)
            except StaleError:
                self.forget()
            finally:
                self._mine.needs = needs
        raise BehindError("definitions change again and again", where=self.description)

    def in_one_state(self, call: Callable[[], T]) -> T:
        """Return what a call returns of which every read sees the same state, as it mostly does without a snapshot."""
        if self.is_pinned:
            return call()
        seen: set[object] = set()
        self._mine.seen, self._mine.needs = seen, {}
        try:
            result = call()
        finally:
            self._mine.seen = self._mine.needs = None
        return result if len(seen) < 2 else self.in_snapshot(call)

    def _run(
        self,
        bound: Bound,
        body: LiteralString,
        parameters: Sequence[Any],
        odd: tuple[tuple[str, ...], LiteralString],
        originals: Sequence[str] | bool,
    ) -> list[Fetched]:
        values = list(parameters)
        looked_for: bool | int
        if isinstance(originals, bool):
            looked_for = originals
        else:
            values.append(SEPARATOR.join(originals))
            looked_for = len(values)
        wanted = (body, odd, str(looked_for))
        statement = bound.statements.get(wanted)
        if statement is None:
            statement = whole_read(self.names, bound, body, odd, looked_for, gated=self._gate is not None)
            bound.statements[wanted] = statement
        try:
            found = self.again_if_lost(lambda: self._fetch(statement, values))
        except psycopg.Error as error:
            if error.sqlstate in _CHANGED:
                raise StaleError from error
            raise
        if not found or found[0][2] != bound.epoch:
            raise StaleError
        return found

    def _fetch(self, statement: bytes, values: list[Any]) -> list[Fetched]:
        with self.connection() as connection:
            return self.reader(connection).fetch(statement, values)


class _Asking:
    """What is done while PostgreSQL looks: the file says what the answer needs. Not before, which would take longer.

    The position is no older than the one at the call, so that all written before is in it.
    """

    __slots__ = ("_session", "_source", "connection", "need")

    connection: psycopg.Connection[Any]

    def __init__(self, session: PostgresSession, source: str) -> None:
        self._session = session
        self._source = source
        self.need: Mark | None = None

    def __call__(self) -> None:
        # The file may be locked: that is no time that PostgreSQL takes.
        self._session.returned(self.connection)
        try:
            self.need = self._session.need(self._source)
        finally:
            self._session.lent(self.connection)
