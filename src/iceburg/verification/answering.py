"""Asking the questions of one store, in a worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from iceburg.database.catalogue import Dataset
from iceburg.database.postgres_session import PostgresSession
from iceburg.errors import IceburgError, SourceError
from iceburg.migration.worker import Context
from iceburg.records import Store
from iceburg.sources.sqlite_rows import TableReader
from iceburg.verification.answers import Question, compare_answers
from iceburg.verification.report import QueryVerification
from iceburg.verification.source_session import source_session
from iceburg.verification.store_questions import ask_conversations, ask_matrix, ask_telemetry, ask_vectors
from iceburg.verification.table_questions import TableQuestions

# A search that goes through a whole table takes its time.
_PATIENCE: Final = 600.0


@dataclass(frozen=True, slots=True)
class AnswerTask:
    """Ask the questions of a store.

    Attributes
    ----------
    store
        Which.
    datasets
        Those of it that both sides have.
    quarantined
        Numbers of those that have quarantined records.
    dsn
        Of the target.
    seed
        Of what the arguments are drawn with.
    """

    store: Store
    datasets: tuple[Dataset, ...]
    quarantined: frozenset[int]
    dsn: str = field(repr=False)
    seed: int = 0


@dataclass(slots=True)
class Answered:
    """What came of it: the questions, and what could not be asked and why."""

    queries: list[QueryVerification] = field(default_factory=list)
    not_asked: list[dict[str, str]] = field(default_factory=list)


def run_answers(context: Context, task: AnswerTask) -> Answered:
    """Ask both sides the questions of a store."""
    return _StoreAnswers(context, task).run()


class _StoreAnswers:
    def __init__(self, context: Context, task: AnswerTask) -> None:
        self._context = context
        self._task = task
        self._found = Answered()
        self._random = Random(f"{task.seed} {task.store.name}")  # noqa: S311 - no secret
        self._by_mapping: dict[str, list[Dataset]] = {}
        for dataset in task.datasets:
            self._by_mapping.setdefault(dataset.definition["mapping"], []).append(dataset)

    def run(self) -> Answered:
        task, context = self._task, self._context
        store = task.store
        session = PostgresSession(
            task.dsn, context.names, pool_min=1, pool_max=1, timeout=30.0, statement_timeout=_PATIENCE
        )
        try:
            if store.kind == "jsonl":
                for dataset in self._complete("telemetry"):
                    self._compare(dataset.name, ask_telemetry(session, store, self._random))
            elif store.kind == "chroma":
                for dataset in task.datasets:
                    self._ask_collection(dataset)
            else:
                self._ask_file(session)
        finally:
            session.close()
        return self._found

    def _complete(self, *mappings: str) -> list[Dataset]:
        """Return the datasets of some mappings of which no record is quarantined; note the others."""
        found = []
        for dataset in (d for mapping in mappings for d in self._by_mapping.get(mapping, ())):
            if dataset.dataset_id in self._task.quarantined:
                self._note(dataset, "some of its records are quarantined: no answer of PostgreSQL's has them")
            else:
                found.append(dataset)
        return found

    def _note(self, dataset: Dataset, why: str) -> None:
        self._found.not_asked.append({"dataset": dataset.name, "why": why})

    def _compare(self, place: str, questions: Iterator[Question]) -> None:
        try:
            self._found.queries += compare_answers(place, questions, self._context.stop_if_asked)
        except IceburgError as error:
            # The records are compared by other readers: this says only that the application could not ask.
            self._found.not_asked.append({"dataset": place, "why": error.without(place)})

    def _ask_collection(self, dataset: Dataset) -> None:
        from iceburg.verification.collection_questions import CollectionQuestions  # numpy, for those that need it

        reader = self._context.stores.reader(self._task.store, dataset.definition)
        asking = CollectionQuestions(reader, self._context.connection, self._context.names, dataset, self._random)
        if asking.why_not is not None:
            self._note(dataset, asking.why_not)
        self._compare(dataset.name, asking.questions())

    def _ask_file(self, session: PostgresSession) -> None:
        store = self._task.store
        file, _ = self._context.stores.sqlite(store)
        vectors = self._complete("vectors")
        with source_session(file, vectors=bool(vectors)) as source:
            matrix = {d.definition["mapping"]: d for d in self._complete("entities", "relationships")}
            if matrix:
                questions = ask_matrix(
                    source,
                    session,
                    store,
                    self._random,
                    has_entities="entities" in matrix,
                    has_relationships="relationships" in matrix,
                )
                self._compare(store.name, questions)
            for dataset in self._complete("conversations"):
                self._compare(dataset.name, ask_conversations(source, session, store, self._random))
            if vectors and len(vectors) == len(self._by_mapping["vectors"]):
                self._compare(store.name, ask_vectors(source, session, store, self._random))
        with file.connect() as connection:
            for dataset in self._complete("table"):
                self._ask_table(connection, dataset)

    def _ask_table(self, source: sqlite3.Connection, dataset: Dataset) -> None:
        context = self._context
        reader = context.stores.reader(self._task.store, dataset.definition)
        if not isinstance(reader, TableReader):
            raise SourceError("is no table", where=dataset.name)
        asking = TableQuestions(source, reader, context.connection, context.names, dataset, self._random)
        if asking.why_not is not None:
            self._note(dataset, asking.why_not)
        self._compare(dataset.name, asking.questions())
