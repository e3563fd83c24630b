"""The example is a program that does the same wherever its state is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import REPOSITORY, environment, rows

EXAMPLE = REPOSITORY / "examples" / "notes.py"
OUTPUT = """\
Must the kettle boil for tea? Tea is best with water that has just boiled. {"note": "tea"}
Why do icebergs float? Icebergs float because ice is lighter than water. {"note": "ice"}
['tea', 'ice']
[('note_found', 2)]
"""


def run(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", EXAMPLE],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_example_does_the_same_in_each_mode(tmp_path: Path, database: str) -> None:
    modes = {
        "off": {},
        "dual": {"ICEBURG_USE_POSTGRES": "true", "DATABASE_URL": database, "ICEBURG_POSTGRES_TIMEOUT": "30"},
        "alone": {"ICEBURG_USE_POSTGRES": "true", "ICEBURG_DUAL_WRITE": "false", "ICEBURG_SCHEMA_NAME": "alone"},
    }
    modes["alone"]["DATABASE_URL"] = database
    for mode, variables in modes.items():
        assert run(ICEBURG_DATA_DIR=str(tmp_path / mode), **variables) == OUTPUT, mode
    for schema in ("public", "alone"):
        assert rows(database, f"SELECT count(*) FROM {schema}.conversations") == [(2,)]
        assert rows(database, f"SELECT count(*) FROM {schema}.embeddings") == [(3,)]


def test_the_flag_may_change_between_two_runs(tmp_path: Path, database: str) -> None:
    def counted(**variables: str) -> str:
        return run(ICEBURG_DATA_DIR=str(tmp_path), DATABASE_URL=database, **variables).splitlines()[-1]

    found = [counted(ICEBURG_USE_POSTGRES=flag, ICEBURG_POSTGRES_TIMEOUT="30") for flag in ("off", "on", "off", "on")]
    assert found == [f"[('note_found', {2 * n})]" for n in (1, 2, 3, 4)]
    assert rows(database, "SELECT count(*) FROM conversations") == [(8,)]


def test_with_no_database_url_the_embedded_server_is_used(tmp_path: Path, server_home: Path) -> None:
    found = run(ICEBURG_DATA_DIR=str(tmp_path), ICEBURG_USE_POSTGRES="yes", ICEBURG_HOME=str(server_home))
    assert found == OUTPUT


def test_the_example_is_short_and_imports_nothing_but_the_package() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", "") for node in imported] == ["iceburg.database"]


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_a_flag_that_is_none_is_an_error(tmp_path: Path, value: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE],
        env=environment(ICEBURG_DATA_DIR=str(tmp_path / "data"), ICEBURG_USE_POSTGRES=value),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "ICEBURG_USE_POSTGRES accepts true, 1, yes, on, false, 0, no or off." in done.stderr
    assert not (tmp_path / "data").exists()
