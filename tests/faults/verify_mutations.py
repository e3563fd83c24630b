"""The verifier is verified: damage of every kind is done to a migrated target, and what finds it is written down.

``python -m tests.faults.verify_mutations`` damages a copy of the target for each kind, verifies it twice (as a second
verification that descends by digests, and comparing every record), mends it where that is possible, and with
``--write`` puts the table into docs/verification.md. It fails if a kind that changes data is not found by the
comparison of records.
"""

from __future__ import annotations

import random
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from iceburg.database.embedded import EmbeddedServer
from iceburg.demo.chroma_writer import Collection, Operation, write_chroma
from iceburg.errors import IceburgError
from iceburg.verification.report import VerificationReport
from tests.support import CONVERSATIONS, ENTITIES, RELATIONSHIPS, change, lines, migrate_fully, run_sql, verify

PAGE: Final = Path(__file__).parents[2] / "docs" / "verification.md"
BEGIN, END = "<!-- mutations -->\n", "<!-- end -->"
WAYS: Final = ("counts", "records", "answers", "structure")
FAST: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "128MB"}


@dataclass(frozen=True)
class Damage:
    """A kind of damage: SQL, whether it changes data, and why nothing finds it where nothing does."""

    what: str
    sql: str
    changes_data: bool = True
    why_not: str = ""


def _kept(name: str) -> str:
    return f"(SELECT dataset_id FROM iceburg_migration.datasets WHERE name = '{name}')"


DAMAGES: Final = (
    # Values
    Damage("one bit of a text flipped", "UPDATE s.t SET txt = 'uext 3' WHERE k = 'k3'"),
    Damage("a text cut by its last letter", "UPDATE s.t SET txt = left(txt, -1) WHERE k = 'k4'"),
    Damage("a space put behind a text", "UPDATE s.t SET txt = txt || ' ' WHERE k = 'k4'"),
    Damage(
        "a letter in the other case",
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{name}',"
        " to_jsonb(lower(entity_data->>'name'))) WHERE entity_id = 'e4'",
    ),
    Damage("a letter composed otherwise (NFC to NFD)", "UPDATE s.t SET txt = normalize(txt, NFD) WHERE k = 'accent'"),
    Damage("NULL made ''", "UPDATE s.t SET txt = '' WHERE k = 'null'"),
    Damage("'' made NULL", "UPDATE s.t SET txt = NULL WHERE k = 'empty'"),
    Damage("an integer off by one", "UPDATE s.t SET n = n + 1 WHERE k = 'k5'"),
    Damage("a number's sign", "UPDATE s.t SET n = -n WHERE k = 'k6'"),
    Damage("a float's last bit", "UPDATE s.t SET r = r + 1e-16 WHERE k = 'k1'"),
    Damage("0.0 made -0.0", "UPDATE s.t SET r = '-0'::float8 WHERE k = 'k0'"),
    Damage("a number made NULL", "UPDATE s.t SET r = NULL WHERE k = 'k2'"),
    Damage("one bit of a blob flipped", "UPDATE s.t SET b = set_bit(b, 3, 1) WHERE k = 'k7'"),
    Damage("a blob cut", "UPDATE s.t SET b = substring(b FROM 1 FOR 1) WHERE k = 'k8'"),
    Damage("a timestamp off by a second", "UPDATE s.t SET day = day + interval '1 second' WHERE k = 'k9'"),
    Damage(
        "a timestamp off by a microsecond",
        'UPDATE conversations SET "timestamp" = "timestamp" + interval \'1 microsecond\' WHERE row_id = 5',
    ),
    Damage(
        "a timestamp off by an hour, as by a zone",
        'UPDATE telemetry SET "timestamp" = "timestamp" + interval \'1 hour\' WHERE byte_offset = 0',
    ),
    # JSON
    Damage(
        "1.0 made 1 in JSON",
        "UPDATE matrix_entities SET entity_data = replace(entity_data::text, '1.0', '1')::jsonb WHERE entity_id = 'e3'",
    ),
    Damage(
        "a large integer rounded in JSON",
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data,"
        " '{properties,big}', '1180591620717411400000') WHERE entity_id = 'e5'",
    ),
    Damage(
        "a list in another order in JSON",
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data,"
        """ '{countries}', '["de", "us"]') WHERE entity_id = 'e6'""",
    ),
    Damage(
        "a key gone in JSON",
        "UPDATE matrix_entities SET entity_data = entity_data #- '{properties,score}' WHERE entity_id = 'e7'",
    ),
    Damage(
        "a key more in JSON",
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{properties,new}',"
        " '1') WHERE entity_id = 'e8'",
    ),
    Damage(
        "a number made text in JSON",
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data,"
        """ '{properties,n}', '"9"') WHERE entity_id = 'e9'""",
    ),
    Damage(
        "null made absent in JSON",
        "UPDATE telemetry SET event_data = event_data #- '{event_data,nothing}' WHERE byte_offset = 0",
    ),
    # Rows
    Damage("a row deleted", "DELETE FROM s.t WHERE k = 'k3'"),
    Damage("an entity deleted", "DELETE FROM matrix_entities WHERE entity_id = 'e3'"),
    Damage(
        "the last line of a log deleted",
        "DELETE FROM telemetry WHERE byte_offset = (SELECT max(byte_offset) FROM telemetry)",
    ),
    Damage("a row too many", "INSERT INTO s.t (k, n) VALUES ('more', 1)"),
    Damage("a row deleted and another added", "DELETE FROM s.t WHERE k = 'k3'; INSERT INTO s.t (k) VALUES ('k33')"),
    Damage("a row twice in a table without a key", "INSERT INTO s.bare (_iceburg_rowid, a) VALUES (100, 'a1')"),
    Damage(
        "a row twice, the key gone",
        "ALTER TABLE matrix_entities DROP CONSTRAINT matrix_entities_pkey;"
        " INSERT INTO matrix_entities (id, dataset_id, entity_type, entity_data, created_at, updated_at)"
        " SELECT id, dataset_id, entity_type, entity_data, created_at, updated_at FROM matrix_entities"
        " WHERE entity_id = 'e2'",
    ),
    Damage("two rows' values swapped", "UPDATE s.t SET n = CASE k WHEN 'k1' THEN 2 ELSE 1 END WHERE k IN ('k1', 'k2')"),
    Damage(
        "two rows' keys swapped",
        "UPDATE s.t SET k = 'x' WHERE k = 'k1'; UPDATE s.t SET k = 'k1' WHERE k = 'k2';"
        " UPDATE s.t SET k = 'k2' WHERE k = 'x'",
    ),
    Damage(
        "a relationship turned round",
        "UPDATE matrix_relationships SET relationship_data = jsonb_set(jsonb_set(relationship_data,"
        " '{source_id}', relationship_data->'target_id'), '{target_id}', relationship_data->'source_id')"
        " WHERE relationship_data->>'relationship_id' = 'r5'",
    ),
    Damage("all rows of a table deleted", "TRUNCATE matrix_relationships"),
    Damage(
        "a row moved to another dataset",
        f"UPDATE matrix_entities SET dataset_id = {_kept('s.db/relationships')} WHERE entity_id = 'e3'",
    ),
    Damage(
        "a row moved to a dataset that is not there",
        "UPDATE matrix_entities SET dataset_id = 999999 WHERE entity_id = 'e3'",
    ),
    Damage(
        "two columns swapped in a conversation",
        "UPDATE conversations SET query = response, response = query WHERE row_id = 3",
    ),
    Damage("a hidden column of the plan changed", "UPDATE conversations SET mode = 'x' WHERE row_id = 4"),
    # Vectors
    Damage(
        "a vector's sign",
        "UPDATE embeddings SET embedding = (embedding::real[])::vector * '[-1,-1,-1,-1,-1,-1,-1,-1]'"
        "::vector WHERE record_id = 'id5'",
    ),
    Damage(
        "a component's last bit",
        "UPDATE embeddings SET embedding = (SELECT array_agg(CASE WHEN i = 3 THEN"
        " x * (1 + 1.2e-7::float8)::float8 ELSE x END ORDER BY i)::real[]::vector FROM unnest(embedding::real[])"
        " WITH ORDINALITY AS c (x, i)) WHERE record_id = 'id6'",
    ),
    Damage(
        "two components swapped",
        "UPDATE embeddings SET embedding = (SELECT array_agg(x ORDER BY CASE i WHEN 1 THEN 2"
        " WHEN 2 THEN 1 ELSE i END)::real[]::vector FROM unnest(embedding::real[]) WITH ORDINALITY AS c (x, i))"
        " WHERE record_id = 'id7'",
    ),
    Damage(
        "two records' vectors swapped",
        "UPDATE embeddings e SET embedding = o.embedding FROM embeddings o WHERE"
        " (e.record_id, o.record_id) IN (('id1', 'id2'), ('id2', 'id1'))",
    ),
    Damage("a vector gone", "UPDATE embeddings SET embedding = NULL WHERE record_id = 'id8'"),
    Damage("a vector normalised", "UPDATE embeddings SET embedding = l2_normalize(embedding) WHERE record_id = 'id9'"),
    Damage(
        "a record in another collection",
        "UPDATE embeddings SET collection_id = (SELECT max(collection_id) FROM"
        " embedding_collections) WHERE record_id = 'id3'",
    ),
    Damage("a document changed", "UPDATE embeddings SET text = text || '.' WHERE record_id = 'id4'"),
    Damage("an empty document made none", "UPDATE embeddings SET has_text = FALSE WHERE record_id = 'empty'"),
    Damage(
        "true made 1 in metadata",
        "UPDATE embeddings SET metadata = jsonb_set(metadata, '{flag}', '1') WHERE record_id = 'id4'",
    ),
    Damage(
        "a collection listed under another name", "UPDATE embedding_collections SET name = 'other' WHERE name = 'c'"
    ),
    Damage("a collection's distance changed", "UPDATE embedding_collections SET distance = 'cosine' WHERE name = 'c'"),
    # What is kept
    Damage("an original gone", "DELETE FROM iceburg_migration.originals WHERE record_key = '[\"kept\"]'"),
    Damage("an original changed", "UPDATE iceburg_migration.originals SET value = 'b' WHERE record_key = '[\"kept\"]'"),
    Damage(
        "an original of nobody",
        "INSERT INTO iceburg_migration.originals SELECT dataset_id, '[\"nobody\"]', field,"
        " storage_class, value, reason FROM iceburg_migration.originals WHERE record_key = '[\"kept\"]'",
    ),
    Damage("the usable value beside an original changed", "UPDATE s.t SET txt = 'c' WHERE k = 'kept'"),
    Damage("a quarantined record gone", "DELETE FROM iceburg_migration.quarantine WHERE record LIKE '%no json%'"),
    Damage(
        "a quarantined record changed",
        "UPDATE iceburg_migration.quarantine SET record ="
        " overlay(record PLACING '\\x5a'::bytea FROM octet_length(record)) WHERE record LIKE '%no json%'",
    ),
    # Definitions
    Damage(
        "a table's definition changed",
        "UPDATE iceburg_migration.datasets SET definition = jsonb_set(definition,"
        " '{description,columns,1,declared_type}', '\"TEXT\"') WHERE name = 's.db/t'",
    ),
    Damage(
        "a file's description changed",
        "UPDATE iceburg_migration.sources SET description ="
        " jsonb_set(description, '{journal_mode}', '\"wal\"') WHERE name = 's.db'",
    ),
    # Structure
    Damage("a table dropped", "DROP TABLE s.bare CASCADE"),
    Damage("a column dropped", "ALTER TABLE s.t DROP COLUMN txt"),
    Damage("a column's type changed", "ALTER TABLE s.t ALTER COLUMN n TYPE integer", False),
    Damage("a NOT NULL taken off", "ALTER TABLE s.numbered ALTER COLUMN v DROP NOT NULL", False),
    Damage("a default changed", "ALTER TABLE s.numbered ALTER COLUMN w SET DEFAULT 'other'", False),
    Damage("a stale sequence", "SELECT setval(pg_get_serial_sequence('s.numbered', 'id'), 2)", False),
    Damage("a primary key dropped", "ALTER TABLE s.t DROP CONSTRAINT t_pkey", False),
    Damage("a unique constraint dropped", "ALTER TABLE s.numbered DROP CONSTRAINT numbered_v_key", False),
    Damage("a foreign key dropped", "ALTER TABLE s.child DROP CONSTRAINT child_parent_fkey", False),
    Damage(
        "a foreign key that does not hold, not validated",
        "ALTER TABLE s.child DROP CONSTRAINT child_parent_fkey;"
        " ALTER TABLE s.child ADD CONSTRAINT child_parent_fkey FOREIGN KEY (parent) REFERENCES s.numbered (id)"
        " NOT VALID",
        False,
    ),
    Damage("an index dropped", "DROP INDEX s.numbered_by_w", False),
    Damage("an index of the plan's dropped", "DROP INDEX matrix_entities_by_type", False),
    Damage(
        "a vector index dropped",
        "DO $$ BEGIN EXECUTE (SELECT 'DROP INDEX ' || indexname FROM pg_indexes WHERE"
        " indexname LIKE 'embeddings_ivfflat_%' LIMIT 1); END $$",
        False,
    ),
    Damage(
        "an index that is not valid",
        "UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 's.numbered_by_w'::regclass",
        False,
    ),
    Damage(
        "an index that lacks a row",
        "SET session_replication_role = replica; UPDATE pg_index SET indisready = FALSE,"
        " indislive = TRUE WHERE indexrelid = 's.numbered_by_w'::regclass; INSERT INTO s.numbered (id, v, w) VALUES"
        " (100, 'v100', 'z'); UPDATE pg_index SET indisready = TRUE WHERE indexrelid = 's.numbered_by_w'::regclass",
    ),
    Damage("a disabled trigger", "ALTER TABLE s.child DISABLE TRIGGER ALL", False),
    Damage(
        "a disabled trigger of the originals",
        "ALTER TABLE iceburg_migration.originals DISABLE TRIGGER kept_noted",
        False,
    ),
    Damage(
        "a dataset taken for regular",
        "UPDATE iceburg_migration.datasets d SET regular = TRUE WHERE EXISTS"
        " (SELECT FROM iceburg_migration.originals o WHERE o.dataset_id = d.dataset_id)",
        False,
    ),
    Damage(
        "a trigger that changes what is written",
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN NULL; END'; CREATE TRIGGER meddle BEFORE INSERT ON matrix_entities FOR EACH ROW EXECUTE"
        " FUNCTION meddle()",
        False,
    ),
    Damage(
        "a rule that swallows writes", "CREATE RULE swallow AS ON DELETE TO matrix_entities DO INSTEAD NOTHING", False
    ),
    Damage("a table that does not survive a crash", "ALTER TABLE telemetry SET UNLOGGED", False),
    Damage("rows hidden by row security", "ALTER TABLE s.t ENABLE ROW LEVEL SECURITY", False),
    Damage("a table that nobody expects in a schema of ours", "CREATE TABLE s.mine (a integer)", False),
    # What is not found
    Damage(
        "an index more", "CREATE INDEX mine ON s.t (n)", False, "it costs time, and changes no answer and no record"
    ),
    Damage(
        "an index under another name",
        "ALTER INDEX s.numbered_by_w RENAME TO other",
        False,
        "it answers the same: indexes are known by what they are on",
    ),
    Damage("a view more", "CREATE VIEW public.mine AS SELECT 1", False, "public is not the program's alone"),
    Damage(
        "a table more in public", "CREATE TABLE public.mine (a integer)", False, "public is not the program's alone"
    ),
    Damage("rows in another order on the disk", "CLUSTER s.t USING t_pkey", False, "a table has no order"),
    Damage(
        "other rights",
        "GRANT SELECT ON s.t TO PUBLIC",
        False,
        "who may read is the operator's to say; `verify` runs as whoever it is given",
    ),
    Damage("a comment", "COMMENT ON TABLE s.t IS 'x'", False, "it says nothing to the program"),
    Damage(
        "a run gone from the ledger",
        "DELETE FROM iceburg_migration.verifications; DELETE FROM iceburg_migration.runs",
        False,
        "that something was done is not in the stores, so there is nothing to compare it with",
    ),
)


def write(directory: Path) -> None:
    """Write the installation that is damaged."""
    path = directory / "s.db"
    change(path, ENTITIES + RELATIONSHIPS + CONVERSATIONS)
    change(
        path,
        """
        CREATE TABLE t (k TEXT PRIMARY KEY, n INT, r REAL, txt TEXT, b BLOB, day TIMESTAMP);
        CREATE TABLE bare (a TEXT);
        CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT NOT NULL UNIQUE, w TEXT DEFAULT 'w');
        CREATE INDEX numbered_by_w ON numbered (w);
        CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES numbered (id));
        """,
    )
    change(
        path,
        "INSERT INTO t VALUES (?, ?, ?, ?, x'00ff', '2025-06-01 12:00:00')",
        *((f"k{n}", n, n / 3, f"text {n}") for n in range(20)),
    )
    change(
        path,
        "INSERT INTO t (k, txt) VALUES ('empty', ''), ('null', NULL), ('kept', 'a' || char(0)), ('accent', 'é'),"
        " ('k' || char(0), 'quarantined')",
    )
    change(path, "INSERT INTO bare VALUES (?)", *((f"a{n}",) for n in range(5)))
    change(path, "INSERT INTO numbered (v, w) VALUES (?, ?)", *((f"v{n}", f"w{n % 3}") for n in range(12)))
    change(path, "INSERT INTO child VALUES (?, ?)", *((n, n) for n in range(1, 9)))
    change(
        path,
        "INSERT INTO entities VALUES (?, ?, 'person', 'src', ?, '[\"us\", \"de\"]', '[]', '2025-06-01 12:00:00')",
        *((f"e{n}", f"Name {n}", f'{{"score": 1.0, "n": {n}, "big": {2**70}}}') for n in range(20)),
        ("bad", "Bad", "{cut"),
    )
    change(
        path,
        "INSERT INTO relationships VALUES (?, 'e1', ?, 'knows', '{}', NULL, '2025-06-01 12:00:00')",
        *((f"r{n}", f"e{n}") for n in range(20)),
    )
    change(
        path,
        "INSERT INTO conversations VALUES (?, 'c1', '2025-06-01T12:00:00.000001', 'question', 'answer', NULL, '',"
        " '{\"a\": 1.0}', '2025-06-01 12:00:00')",
        *((n,) for n in range(1, 20)),
    )
    (directory / "events.jsonl").write_bytes(
        lines(
            *(
                f'{{"event_type": "e", "timestamp": {number}.5, "event_data": {{"v": 1.0, "nothing": null}}}}'
                for number in range(1_750_000_000, 1_750_000_020)
            ),
            "no json",
        )
    )
    vectors = np.random.default_rng(3).standard_normal((20, 8), dtype=np.float32)
    operations = [
        Operation("add", f"id{n}", vector, {"chroma:document": f"document {n}", "n": n, "flag": True})
        for n, vector in enumerate(vectors)
    ]
    operations.append(Operation("add", "empty", vectors[0], {"chroma:document": ""}))
    other = [Operation("add", f"other{n}", vector, {"n": n}) for n, vector in enumerate(vectors)]
    collections = [Collection("c", 8, "l2", operations), Collection("d", 8, "cosine", other)]
    write_chroma(directory / "chroma", "1.5", collections, random.Random(0))


def found_by(report: VerificationReport) -> tuple[str, ...]:
    """Return the ways in which a verification found something."""
    ways = {difference.found_by for difference in report.differences}
    if any(d.source_rows != d.target_rows + d.quarantined_rows for d in report.datasets):
        ways.add("counts")
    named = {*ways, *(["answers"] if any(not query.identical for query in report.queries) else [])}
    return tuple(way for way in WAYS if way in named)


class Laboratory:
    """A migrated and verified installation of which damaged copies are made."""

    def __init__(self, server_dsn: str, directory: Path) -> None:
        self._server = server_dsn
        self.directory = directory
        self._name = f"iceburg_test_{uuid.uuid4().hex}"
        write(directory)
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'"), self._name)
        migrate_fully(make_conninfo(server_dsn, dbname=self._name), directory)

    def _run(self, statement: sql.SQL, *names: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement.format(*map(sql.Identifier, names)))

    def close(self) -> None:
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), self._name)

    @contextmanager
    def damaged(self, damage: Damage) -> Iterator[str]:
        """Give the DSN of a copy that is damaged."""
        name = f"iceburg_test_{uuid.uuid4().hex}"
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"), name, self._name)
        try:
            dsn = make_conninfo(self._server, dbname=name)
            run_sql(dsn, damage.sql)
            yield dsn
        finally:
            self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), name)

    def examine(self, damage: Damage, *, mend: bool = True) -> Result:
        """Do damage, and see what finds it, and whether it is mended."""
        with self.damaged(damage) as dsn:
            with_proof = found_by(verify(dsn, self.directory))
            whole = found_by(verify(dsn, self.directory, recheck=True))
            mended = None
            if whole and mend:
                mended = verify(dsn, self.directory, repair=True).status == "identical"
            return Result(damage, with_proof, whole, mended)


@dataclass(frozen=True)
class Result:
    """What found a damage: a second verification, and one of every record; and whether ``--repair`` mends it."""

    damage: Damage
    found: tuple[str, ...]
    rechecked: tuple[str, ...]
    mended: bool | None

    @property
    def problem(self) -> str | None:
        """What is wrong with the verifier."""
        damage = self.damage
        if damage.why_not:
            return f"is found by {self.found}" if self.found else None
        if not self.found:
            return "is not found"
        if damage.changes_data and "records" not in self.found:
            return f"is found by {', '.join(self.found)} alone"
        return None if set(self.found) >= set(self.rechecked) else f"{self.rechecked} with --recheck, else {self.found}"


def table(results: list[Result]) -> str:
    """Return the table for the page."""
    found = ["| damage | counts | records | answers | structure | mended |", "| --- | --- | --- | --- | --- | --- |"]
    for result in results:
        if not result.damage.why_not:
            marks = ["yes" if way in result.found else "" for way in WAYS]
            found.append(f"| {result.damage.what} | {' | '.join(marks)} | {'yes' if result.mended else 'no'} |")
    found += ["", "Not found:", "", "| damage | why not |", "| --- | --- |"]
    found += [f"| {r.damage.what} | {r.damage.why_not} |" for r in results if r.damage.why_not]
    kinds = [r for r in results if not r.damage.why_not]
    data = [r for r in kinds if r.damage.changes_data]
    found += [
        "",
        f"{len(results)} kinds of damage; {len(data)} change data, of which the comparison of records found"
        f" {sum('records' in r.found for r in data)}; {sum(bool(r.mended) for r in kinds)} of the {len(kinds)} that are"
        " found are mended by `--repair`.",
    ]
    return "\n".join(found) + "\n"


def main() -> int:
    """Run the campaign."""
    home = Path(tempfile.mkdtemp(prefix="iceburg-mutations-", dir="/var/tmp"))
    home.chmod(0o755)
    server = EmbeddedServer(home, overrides=FAST)
    results, wrong = [], 0
    with tempfile.TemporaryDirectory() as directory:
        laboratory = Laboratory(server.ensure_running(), Path(directory))
        only = [word for word in sys.argv[1:] if not word.startswith("-")]
        for damage in DAMAGES:
            if only and not any(word in damage.what for word in only):
                continue
            try:
                result = laboratory.examine(damage)
            except (psycopg.Error, IceburgError) as error:
                wrong += 1
                print(f"{damage.what}: {type(error).__name__}: {error}", flush=True)
                continue
            results.append(result)
            wrong += result.problem is not None
            note = f"   WRONG: {result.problem}" if result.problem else ""
            print(f"{damage.what}: {', '.join(result.found) or 'nothing'}; mended: {result.mended}{note}", flush=True)
        laboratory.close()
    server.stop()
    if "--write" in sys.argv:
        text = PAGE.read_text("utf-8")
        before, rest = text.split(BEGIN, 1)
        PAGE.write_text(before + BEGIN + table(results) + END + rest.split(END, 1)[1], "utf-8")
    print(f"{len(results)} kinds of damage, {wrong} verdicts that are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
