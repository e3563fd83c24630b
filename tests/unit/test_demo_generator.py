"""The generator: what it says it wrote is what is there, by counting with nothing but sqlite3 and gzip."""

import gzip
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from iceburg.demo.generator import generate
from iceburg.demo.manifest import Manifest, StoreContents
from iceburg.errors import UsageError

ENTITIES = 1000


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("odd") / "installation"
    return root, generate(root, entities=ENTITIES, seed=3)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("clean") / "installation"
    return root, generate(root, entities=ENTITIES, seed=3, odd_values=False)


def query(path: Path, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Read with bytes for every text, and leave no file beside a database in WAL mode."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        connection.text_factory = bytes
        return connection.execute(sql, parameters).fetchall()


def tables(path: Path) -> list[str]:
    rows = query(path, "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual')")
    return sorted(name.decode() for (name,) in rows if not name.startswith(b"sqlite_"))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def rows_of(path: Path, table: str) -> int:
    return int(query(path, f"SELECT count(*) FROM {quoted(table)}")[0][0])


def lines_of(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")


def odd_count(store: StoreContents, what: str, dataset: str, field: str) -> int:
    return sum(o.count for o in store.odd_values if (o.what, o.dataset, o.field) == (what, dataset, field))


def everything(root: Path) -> Iterator[tuple[str, object]]:
    """Yield what must be the same for the same seed: all values with their types, and the bytes of all other files."""
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        if path.suffix not in (".db", ".sqlite3") or path.stat().st_size == 0:
            yield name, path.read_bytes()
            continue
        yield name, query(path, "SELECT type, name, sql FROM sqlite_master ORDER BY rowid")
        for table in (*tables(path), "sqlite_sequence"):
            if table != "sqlite_sequence" or query(path, "SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'"):
                found = query(path, f"SELECT * FROM {quoted(table)}")
                yield f"{name}/{table}", sorted(repr(row) for row in found)


class TestManifest:
    def test_every_table_is_listed_with_its_rows(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        stores = [s for s in manifest.stores if s.kind == "sqlite"]
        assert len(stores) == 7
        for store in stores:
            listed = {d.name: d.records for d in store.datasets if d.kind != "view"}
            assert {name: rows_of(root / store.name, name) for name in tables(root / store.name)} == listed

    def test_every_line_is_counted(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        stores = [s for s in manifest.stores if s.kind == "jsonl"]
        assert {s.name for s in stores} == {str(p.relative_to(root)) for p in root.rglob("*.jsonl*")}
        for store in stores:
            counted = sum(1 for line in lines_of(root / store.name) if line.strip())
            assert store.records("lines") == counted > 0

    def test_every_collection_is_counted(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        stores = [s for s in manifest.stores if s.kind == "chroma"]
        assert [s.name for s in stores] == ["data/chroma", "data/memory/chroma"]
        for store in stores:
            counted = query(
                root / store.name / "chroma.sqlite3",
                """SELECT collections.name, count(embeddings.id) FROM collections
                JOIN segments ON segments.collection = collections.id AND scope = 'METADATA'
                LEFT JOIN embeddings ON embeddings.segment_id = segments.id GROUP BY collections.id""",
            )
            assert {name.decode(): n for name, n in counted} == {d.name: d.records for d in store.datasets}

    def test_nothing_else_is_there(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        names = {s.name for s in manifest.stores}
        files = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
        assert {f for f in files if "chroma/" not in f} == {s.name for s in manifest.stores if s.kind != "chroma"}
        assert names >= {"matrix.db", "conversations.db", "research.db", "data/iceburg_unified.db", "data/empty.db"}

    def test_survives_json(self, installation: tuple[Path, Manifest]) -> None:
        _, manifest = installation
        assert Manifest.from_json(manifest.to_json()) == manifest

    def test_looks_up_by_name(self, installation: tuple[Path, Manifest]) -> None:
        _, manifest = installation
        assert manifest.store("matrix.db").records("relationships") == ENTITIES // 2
        assert manifest.records > ENTITIES
        with pytest.raises(KeyError):
            manifest.store("absent.db")
        with pytest.raises(KeyError):
            manifest.store("matrix.db").records("absent")


class TestDeterminism:
    def test_same_seed_same_installation(self, installation: tuple[Path, Manifest], tmp_path: Path) -> None:
        root, manifest = installation
        assert generate(tmp_path / "again", entities=ENTITIES, seed=3) == manifest
        first, second = dict(everything(root)), dict(everything(tmp_path / "again"))
        assert [name for name in {**first, **second} if first.get(name) != second.get(name)] == []

    def test_other_seed_other_values(self, installation: tuple[Path, Manifest], tmp_path: Path) -> None:
        root, _ = installation
        generate(tmp_path / "other", entities=ENTITIES, seed=4)
        sql = "SELECT entity_id, name FROM entities LIMIT 1"
        assert query(root / "matrix.db", sql) != query(tmp_path / "other/matrix.db", sql)


class TestDirectory:
    def test_refuses_a_directory_that_is_not_empty(self, tmp_path: Path) -> None:
        (tmp_path / "keep").write_text("mine")
        with pytest.raises(UsageError, match="not an empty directory"):
            generate(tmp_path, entities=10)
        assert [p.name for p in tmp_path.iterdir()] == ["keep"]

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="not an empty directory"):
            generate(tmp_path / "file", entities=10)

    def test_fills_an_empty_directory_and_makes_parents(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        generate(tmp_path / "empty", entities=10)
        generate(tmp_path / "a/b/c", entities=10)
        assert (tmp_path / "empty/matrix.db").exists()
        assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o700

    def test_remains_of_a_killed_run_are_named(self, tmp_path: Path) -> None:
        (tmp_path / ".here.partial").mkdir()
        with pytest.raises(UsageError, match=r"here\.partial: an earlier generation was killed"):
            generate(tmp_path / "here", entities=10)
        assert not (tmp_path / "here").exists()

    def test_an_interrupted_run_leaves_nothing(self, tmp_path: Path) -> None:
        def interrupt(text: str) -> None:
            if text.startswith("data/chroma"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "here", entities=10, progress=interrupt)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["entities", "relationships", "vectors", "lines"])
    def test_refuses_negative_numbers(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match=f"{name} is -1"):
            generate(tmp_path / "here", **{name: -1})  # type: ignore[arg-type]

    def test_refuses_relationships_without_entities(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="without entities"):
            generate(tmp_path / "here", entities=0, relationships=5)


class TestSizes:
    @pytest.mark.parametrize("entities", [0, 1, 2, 3, 17])
    def test_small_installations(self, tmp_path: Path, entities: int) -> None:
        manifest = generate(tmp_path / "small", entities=entities, metadata_rows=entities)
        for store, dataset in manifest.datasets():
            if dataset.kind == "table":
                assert rows_of(tmp_path / "small" / store.name, dataset.name) == dataset.records
        assert manifest.store("matrix.db").records("entities") == entities

    def test_numbers_can_be_chosen(self, tmp_path: Path) -> None:
        manifest = generate(
            tmp_path / "chosen",
            entities=30,
            relationships=7,
            conversations=11,
            research=3,
            metadata_rows=4,
            vectors=6,
            lines=16,
            odd_values=False,
        )
        assert manifest.store("matrix.db").records("relationships") == 7
        assert manifest.store("conversations.db").records("conversations") == 11
        assert manifest.store("research.db").records("research") == 3
        assert manifest.store("data/telemetry/events.jsonl").records("lines") == 16

    def test_progress_names_every_store(self, tmp_path: Path) -> None:
        said: list[str] = []
        manifest = generate(tmp_path / "said", entities=10, progress=said.append)
        assert all(any(text.startswith(f"{store.name}: ") for text in said) for store in manifest.stores)


class TestJournalMode:
    def test_ordinary_files(self, installation: tuple[Path, Manifest]) -> None:
        root, _ = installation
        # The read and write versions of the file header: 2 is WAL.
        versions = {p.name: p.read_bytes()[18:20] for p in root.rglob("*.db") if p.stat().st_size}
        assert versions.pop("performance_metrics.db") == b"\x02\x02"
        assert set(versions.values()) == {b"\x01\x01"}
        assert [p for p in root.rglob("*") if p.name.endswith(("-journal", "-wal", "-shm"))] == []

    def test_the_empty_database_has_no_bytes(self, installation: tuple[Path, Manifest]) -> None:
        root, _ = installation
        assert (root / "data/empty.db").read_bytes() == b""

    @pytest.mark.parametrize("name", ["matrix.db", "conversations.db", "research.db", "data/iceburg_unified.db"])
    def test_integrity(self, installation: tuple[Path, Manifest], name: str) -> None:
        root, _ = installation
        problems = [row[0] for row in query(root / name, "PRAGMA integrity_check")]
        assert problems == [b"ok"]


class TestMatrix:
    def test_columns_and_indexes(self, installation: tuple[Path, Manifest]) -> None:
        root, _ = installation
        path = root / "matrix.db"
        columns = query(path, "SELECT name, type, dflt_value, pk FROM pragma_table_info('entities')")
        assert columns[0] == (b"entity_id", b"TEXT", None, 1)
        assert columns[-1] == (b"created_at", b"TEXT", b"CURRENT_TIMESTAMP", 0)
        indexes = query(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name")
        assert [i.decode() for (i,) in indexes] == [
            "idx_entities_name",
            "idx_entities_source",
            "idx_entities_type",
            "idx_rel_source",
            "idx_rel_target",
        ]

    def test_size_and_form_of_properties(self, clean: tuple[Path, Manifest]) -> None:
        root, _ = clean
        (row,) = query(
            root / "matrix.db", "SELECT avg(length(properties)), avg(entity_id LIKE 'osanc_%') FROM entities"
        )
        assert 400 < row[0] < 600
        assert 0.8 < row[1] < 1
        for (text,) in query(root / "matrix.db", "SELECT properties FROM entities WHERE properties IS NOT NULL"):
            assert json.dumps(json.loads(text)).encode() == text

    @pytest.mark.parametrize(
        ("what", "field", "condition"),
        [
            ("NaN in JSON", "properties", "properties LIKE '%: NaN%'"),
            ("\\u0000 in JSON", "properties", r"properties LIKE '%\u0000%'"),
            ("lone surrogate in JSON", "properties", r"properties LIKE '%\ud800 %'"),
            ("-0.0 in JSON", "properties", "properties LIKE '%-0.0%'"),
            ("1e400 in JSON", "properties", "properties LIKE '%1e400%'"),
            ("2^63 and 2^70 in JSON", "properties", "properties LIKE '%1180591620717411303424%'"),
            ("empty text for JSON", "properties", "properties = ''"),
            ("BLOB for JSON", "properties", "typeof(properties) = 'blob'"),
            ("text over 100 characters", "entity_type", "length(entity_type) > 100"),
            ("NUL character", "name", "instr(CAST(name AS BLOB), x'00') AND typeof(name) = 'text'"),
            ("invalid UTF-8", "name", "hex(name) LIKE '436166E9%'"),
            ("NUL character", "entity_id", "instr(CAST(entity_id AS BLOB), x'00')"),
            ("NULL in a primary key", "entity_id", "entity_id IS NULL"),
            ("not a time", "created_at", "created_at = 'yesterday'"),
            ("NULL time", "created_at", "created_at IS NULL"),
            ("epoch seconds", "created_at", "created_at = '1748736000'"),
            ("ISO 8601 with Z", "created_at", "created_at LIKE '%Z'"),
        ],
    )
    def test_odd_values_are_there_as_often_as_listed(
        self, installation: tuple[Path, Manifest], what: str, field: str, condition: str
    ) -> None:
        root, manifest = installation
        found = query(root / "matrix.db", f"SELECT count(*) FROM entities WHERE {condition}")[0][0]
        assert found == odd_count(manifest.store("matrix.db"), what, "entities", field) > 0

    def test_dangling_ends(self, installation: tuple[Path, Manifest], clean: tuple[Path, Manifest]) -> None:
        for (root, manifest), expected in ((installation, 10), (clean, 0)):
            missing = query(
                root / "matrix.db",
                """WITH known AS (SELECT entity_id FROM entities WHERE entity_id IS NOT NULL)
                SELECT sum(target_id NOT IN known), sum(source_id NOT IN known) FROM relationships""",
            )[0]
            listed = odd_count(manifest.store("matrix.db"), "dangling end", "relationships", "target_id")
            assert missing == (listed, 0)
            assert listed == pytest.approx(expected, abs=1)


class TestConversations:
    def test_ids_have_gaps_and_the_sequence_is_ahead(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        path = root / "conversations.db"
        count = manifest.store("conversations.db").records("conversations")
        highest, sequence = query(path, "SELECT max(id), (SELECT seq FROM sqlite_sequence) FROM conversations")[0]
        assert count < highest < sequence

    def test_shapes(self, installation: tuple[Path, Manifest]) -> None:
        root, _ = installation
        counts = query(
            root / "conversations.db",
            """SELECT sum(mode IS NULL), sum(agent_used IS NULL), sum(length(mode) > 50),
            sum(user_message = ''),
            sum(length(timestamp) = 19), sum(length(timestamp) = 26),
            max(length(assistant_message)) FROM conversations""",
        )[0]
        assert all(n > 0 for n in counts)
        assert counts[-1] == 1_000_000


class TestMetadata:
    def test_35_tables_and_57_indexes_beside_the_specimens(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        ordinary = [d.name for d in manifest.store("data/iceburg_unified.db").datasets][:35]
        assert ordinary[0] == "accounts"
        assert ordinary[-1] == "shares"
        marks = ", ".join("?" for _ in ordinary)
        sql = f"SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ({marks})"
        assert query(root / "data/iceburg_unified.db", sql, *ordinary)[0][0] >= 57

    def test_orphans_are_listed(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        store = manifest.store("data/iceburg_unified.db")
        for table, column, parent, key in (
            ("members", "workspace_id", "workspaces", "workspace_id"),
            ("agent_runs", "agent_id", "agents", "agent_id"),
            ("members", "account_id", "accounts", "account_id"),
        ):
            sql = f"""SELECT count(*) FROM {table} WHERE {column} NOT IN
                (SELECT {key} FROM {parent} WHERE {key} IS NOT NULL)"""
            assert query(root / store.name, sql)[0][0] == odd_count(store, "orphan", table, column)
        assert odd_count(store, "orphan", "members", "workspace_id") > 0

    def test_forms_of_tables(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        path = root / "data/iceburg_unified.db"
        assert query(path, "SELECT name FROM pragma_table_list WHERE wr = 1 AND type = 'table'") == [(b"lexicon",)]
        assert {h for (h,) in query(path, "SELECT hidden FROM pragma_table_xinfo('invoice_lines')")} == {0, 2, 3}
        assert query(path, "SELECT seq FROM sqlite_sequence WHERE name = 'drafts'") == [(412,)]
        assert rows_of(path, "drafts") == 0
        duplicates = query(path, "SELECT count(*) FROM audit_trail GROUP BY who, what, at HAVING count(*) > 1")
        assert duplicates
        assert manifest.store("data/iceburg_unified.db").records("recent_runs") == rows_of(path, "recent_runs")
        matched = query(path, "SELECT count(*) FROM concept_search WHERE concept_search MATCH 'ledger'")
        assert matched[0][0] > 0

    def test_extremes(self, installation: tuple[Path, Manifest]) -> None:
        root, _ = installation
        path = root / "data/iceburg_unified.db"
        numbers = {n for (n,) in query(path, "SELECT number FROM big_numbers")}
        assert numbers >= {10_010_000_000_000_001, 9_223_372_036_854_775_807, -9_223_372_036_854_775_808}
        kinds = {k for (k,) in query(path, "SELECT typeof(whole) FROM measurements")}
        assert kinds == {b"integer", b"real", b"text", b"blob"}
        readings = [r for (r,) in query(path, "SELECT reading FROM measurements WHERE typeof(reading) = 'real'")]
        assert {float("inf"), float("-inf")} <= set(readings)


class TestLines:
    def test_every_form_is_there(self, installation: tuple[Path, Manifest]) -> None:
        _, manifest = installation
        found = {o.what for s in manifest.stores if s.kind == "jsonl" for o in s.odd_values}
        assert found >= {
            "CR LF line ends",
            "byte order mark",
            "unfinished last line",
            "blank line",
            "duplicated line",
            "invalid JSON",
            "not an object: JSON array",
            "NaN in JSON",
            "lone surrogate in JSON",
            "2^63 and 2^70 in JSON",
            "epoch milliseconds",
        }

    def test_ends_and_beginnings(self, installation: tuple[Path, Manifest]) -> None:
        root, manifest = installation
        for store in manifest.stores:
            if store.kind == "jsonl":
                whats = {o.what for o in store.odd_values}
                lines = lines_of(root / store.name)
                assert (lines[-1] != b"") == ("unfinished last line" in whats)
                assert lines[0].startswith(b"\xef\xbb\xbf") == ("byte order mark" in whats)
                assert any(line.endswith(b"\r") for line in lines) == ("CR LF line ends" in whats)
                blanks = sum(1 for line in lines[:-1] if not line.strip())
                assert blanks == odd_count(store, "blank line", "lines", "")


class TestClean:
    def test_nothing_is_listed_as_odd(self, clean: tuple[Path, Manifest]) -> None:
        _, manifest = clean
        assert [o for s in manifest.stores for o in s.odd_values] == []

    def test_every_line_is_a_json_object(self, clean: tuple[Path, Manifest]) -> None:
        root, manifest = clean
        for store in manifest.stores:
            if store.kind == "jsonl":
                lines = lines_of(root / store.name)
                assert lines.pop() == b""
                assert all(isinstance(json.loads(line), dict) for line in lines)
                assert store.records("lines") == len(lines)

    def test_no_orphans(self, clean: tuple[Path, Manifest]) -> None:
        root, manifest = clean
        for store in manifest.stores:
            if store.kind == "sqlite":
                assert query(root / store.name, "PRAGMA foreign_key_check") == []

    def test_texts_are_utf_8_without_nul_and_numbers_of_one_type(self, clean: tuple[Path, Manifest]) -> None:
        root, manifest = clean
        for store, dataset in manifest.datasets():
            if store.kind == "sqlite" and dataset.kind == "table":
                table = quoted(dataset.name)
                for row in query(root / store.name, f"SELECT name FROM pragma_table_xinfo({table})"):
                    column = quoted(row[0].decode())
                    sql = f"SELECT DISTINCT typeof({column}) FROM {table} WHERE {column} IS NOT NULL"
                    assert len(query(root / store.name, sql)) <= 1, (dataset.name, column)
                    for (text,) in query(
                        root / store.name, f"SELECT {column} FROM {table} WHERE typeof({column}) = 'text'"
                    ):
                        assert "\x00" not in text.decode("utf-8")

    def test_json_columns_parse(self, clean: tuple[Path, Manifest]) -> None:
        root, _ = clean
        for name, table, columns in (
            ("matrix.db", "entities", ("properties", "countries", "datasets")),
            ("matrix.db", "relationships", ("properties",)),
            ("conversations.db", "conversations", ("metadata",)),
            ("research.db", "research", ("agents_used", "sources", "metadata")),
        ):
            for column in columns:
                for (text,) in query(root / name, f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"):
                    assert json.dumps(json.loads(text)).encode() == text
