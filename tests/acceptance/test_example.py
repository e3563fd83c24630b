"""The example is a program that does the same wherever its state is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

import iceburg.database
from iceburg.config import Settings
from iceburg.database import metrics, protocol
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


# The page on the library


def page() -> str:
    return (REPOSITORY / "docs" / "library.md").read_text("utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    assert len(blocks) == 3
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", "\n".join(blocks)],
        env=environment(ICEBURG_DATA_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_page_names_every_setting_method_error_and_metric() -> None:
    settings = {f"ICEBURG_{name.upper()}" for name in Settings.model_fields} - {"ICEBURG_DATABASE_URL"}
    stores = (
        protocol.ConversationStore,
        protocol.MatrixStore,
        protocol.EmbeddingStore,
        protocol.TelemetryStore,
    )
    methods = {name for store in stores for name in vars(store) if not name.startswith("_")}
    collected = [found for found in vars(metrics).values() if isinstance(found, MetricWrapperBase)]
    measured = {
        found.name + ("_total" if isinstance(metric, Counter) else "")
        for metric in collected
        for found in metric.describe()
    }
    assert len(measured) > 8
    raised = {"IceburgError", "UsageError", "SourceError", "SourceBusyError", "TargetError"}
    text = page()
    assert [name for name in sorted(settings | methods | measured) if f"`{name}`" not in text] == []
    assert [name for name in sorted(raised) if name not in text] == []
    defaults = dict(re.findall(r"^\| `(ICEBURG_\w+)` \| `?([\w.]+)`? \|", text, re.MULTILINE))
    assert defaults.keys() > {"ICEBURG_USE_POSTGRES", "ICEBURG_POSTGRES_TIMEOUT"}
    for name, default in defaults.items():
        actual = Settings.model_fields[name.removeprefix("ICEBURG_").lower()].default
        said = "None" if default in ("none", "public") else default
        assert said.lower() in (str(actual).lower(), str(actual).removesuffix(".0")), name


def test_every_public_name_is_there() -> None:
    for name in iceburg.database.__all__:
        assert getattr(iceburg.database, name).__name__ == name
    assert set(iceburg.database.__all__) <= set(dir(iceburg.database))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(iceburg.database, "nothing")  # noqa: B009 - as an import asks


@pytest.mark.parametrize("module", ["copy_format", "change_log", "protocol"])
def test_a_module_does_not_bring_the_whole_package(module: str) -> None:
    program = f"import sys, iceburg.database.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    unwanted = ("numpy", "prometheus_client", "sqlite_vec", "psycopg_pool", "iceburg.database.unified_db")
    assert [name for name in unwanted if name in loaded] == []
