"""The documentation is held to the program: commands, options, help texts, reasons, modules, tables, links.

What can be generated stands between markers in the pages. ``python -m tests.acceptance.test_documentation`` writes it
anew after a change of the program.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from iceburg import cli, config, log_view
from iceburg.cli.application import app
from iceburg.database import adoption, arming
from iceburg.database.embedded import ServerStatus
from iceburg.database.embedded_databases import EmbeddedDatabase
from iceburg.database.schema import schema_files, schema_names
from iceburg.demo.generator import generate
from iceburg.mappings.timestamps import FORMS
from iceburg.migration import inspection, report, restore_report, status
from iceburg.monitoring.cutover import CutoverReport
from iceburg.monitoring.gate import Condition
from iceburg.monitoring.watch_report import WatchReport
from iceburg.monitoring.watches import Stretch
from iceburg.monitoring.window import Comparisons, Figures, Window
from iceburg.records import VectorOrigin
from iceburg.sources import chroma_loss
from iceburg.sources.discovery import discover
from iceburg.verification import report as verification

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "iceburg"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
REPAIR = "run: python -m tests.acceptance.test_documentation"

_BLOCK = re.compile(r"(<!-- (help|modules): ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_ROOMS = ("", "cli", "sources", "mappings", "database", "migration", "verification", "monitoring", "demo", "dashboard")


# What the program says

cli.load()


def commands() -> dict[tuple[str, ...], Any]:
    """Return every command, groups included, by its path."""

    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk((*path, name), inner)

    return dict(walk((), typer.main.get_command(app)))


def test_each_command_is_known_with_the_module_that_defines_it() -> None:
    """Only that module is loaded, so that a command starts quickly."""

    def modules(command: Any) -> set[str]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return {command.callback.__module__.removeprefix("iceburg.cli.")}
        return set().union(*map(modules, inner.values()))

    found = {path[0]: modules(command) for path, command in commands().items() if len(path) == 1}
    assert found == {name: {module} for name, module in cli.COMMANDS.items()}


def options(command: Any) -> list[str]:
    """Return the options of a command, in all their spellings."""
    return [name for param in command.params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]


def help_text(path: tuple[str, ...]) -> str:
    """Return what ``--help`` prints, in a fixed width and free of what depends on the machine."""
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="iceburg-db", env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    # The number of processors is the machine's.
    return re.sub(r"\[default: \d(; 1<=x<=64\])", r"[default: N\1", result.output).strip()


def module_list(room: str) -> str:
    """Return a line for each module of a room: its name and the first sentence of its docstring."""
    lines = []
    for path in sorted((SOURCE / room).glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert docstring, f"{path} has no docstring"
        summary = " ".join(docstring.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
        if path.name != "__init__.py":
            lines.append(f"| `{path.name}` | {summary} |")
    return "\n".join(["| module | is |", "| --- | --- |", *lines])


def generated(kind: str, argument: str) -> str:
    """Return what belongs between two markers."""
    if kind == "modules":
        return module_list("" if argument == "iceburg" else argument) + "\n"
    program, *path = argument.split()
    assert program == "iceburg-db", argument
    return "```text\n" + help_text(tuple(path)) + "\n```\n"


def renewed(text: str) -> str:
    """Return a page with all of its generated blocks made anew."""
    return _BLOCK.sub(lambda found: found[1] + generated(found[2], found[3]) + found[5], text)


def reasons_in_code() -> set[str]:
    """Return every reason for which something is preserved or quarantined; ``…`` stands for what is put in."""
    found: set[str] = set()
    for path in (*(SOURCE / "mappings").glob("*.py"), SOURCE / "migration" / "copy_stream.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for expression in _reason_expressions(node):
                found.update(_texts(expression))
    # What json.loads calls a constant is its own reason.
    return found | {"NaN", "Infinity", "-Infinity"}


def _reason_expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that stand where a reason is expected."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name in ("Original", "UnmappableError", "Analysis", "keep") and node.args:
            yield node.args[-1]
        if name == "append" and owner == "reasons":
            yield node.args[0]
    elif isinstance(node, ast.Return) and node.value is not None:
        yield from _seconds(node.value)
    elif isinstance(node, ast.Assign):
        targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if "reason" in targets:
            yield node.value
    elif isinstance(node, ast.FunctionDef) and node.name == "_misfit":
        yield from (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value)


def _seconds(value: ast.expr) -> Iterator[ast.expr]:
    """Yield the second of two values returned, through conditions."""
    if isinstance(value, ast.IfExp):
        yield from _seconds(value.body)
        yield from _seconds(value.orelse)
    elif isinstance(value, ast.Tuple) and len(value.elts) == 2:
        yield value.elts[1]


def _texts(expression: ast.expr) -> Iterator[str]:
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.IfExp):
        yield from _texts(expression.body)
        yield from _texts(expression.orelse)
    elif isinstance(expression, ast.BoolOp):
        for value in expression.values:
            yield from _texts(value)
    elif isinstance(expression, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else "\N{HORIZONTAL ELLIPSIS}"
            for part in expression.values
        )


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms, and modules of none, that a module or a room imports from."""
    found: set[str] = set()
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iceburg."):
                found.add((node.module or "").split(".")[1])
            elif isinstance(node, ast.ImportFrom) and node.module == "iceburg":
                found.update(alias.name for alias in node.names if alias.name != "__version__")
            elif isinstance(node, ast.Import):
                found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("iceburg."))
    return found


# What the pages say


def page_of(path: tuple[str, ...]) -> Path:
    return DOCS / "commands" / f"{path[0]}.md"


def prose(text: str) -> str:
    """Return a page without its generated blocks."""
    return _BLOCK.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the anchors that a Markdown page offers, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def documented_reasons() -> set[str]:
    """Return the first cells of the tables of reasons."""
    text = (DOCS / "mappings.md").read_text("utf-8")
    tables = re.findall(r"<!-- reasons -->(.*?)<!-- end -->", text, re.DOTALL)
    return {cell for table in tables for cell in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)}


# The tests

LEAVES = [path for path in commands() if path]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_its_help_on_its_page(path: tuple[str, ...]) -> None:
    page = page_of(path)
    assert page.is_file(), f"{page.relative_to(ROOT)} is missing"
    assert f"<!-- help: iceburg-db {' '.join(path)} -->" in page.read_text("utf-8"), f"no help of {path} in {page.name}"


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    text = prose(page_of(path).read_text("utf-8"))
    missing = [name for name in options(commands()[path]) if not re.search(rf"`{name}\b", text) and name != "--help"]
    assert not missing, f"{page_of(path).name} says nothing of its own about {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_blocks_are_those_of_the_program(page: Path) -> None:
    text = page.read_text("utf-8")
    assert renewed(text) == text, f"{page.relative_to(ROOT)} is out of date; {REPAIR}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{page.relative_to(ROOT)} links to {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in _LINK.findall(page.read_text("utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_file():
                waiting.append(target)
    assert not {page.relative_to(ROOT) for page in DOCS.rglob("*.md") if page not in reached}


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    missing = [path[0] for path in LEAVES if f"docs/commands/{path[0]}.md" not in text]
    assert not missing


def test_every_room_has_its_list_of_modules() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    assert [room for room in _ROOMS if f"<!-- modules: {room or 'iceburg'} -->" not in text] == []
    folders = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    assert folders - {".", *_ROOMS} == set()


def test_the_rooms_import_what_the_architecture_says() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    table = re.search(r"<!-- arrows -->(.*?)<!-- end -->", text, re.DOTALL)
    assert table is not None
    rows = [line.split("|")[1:3] for line in table[1].splitlines() if line.startswith("| `")]
    allowed = {
        name: set(re.findall(r"`(\w+)`", right)) for left, right in rows for name in re.findall(r"`(\w+)`", left)
    }
    assert set(_ROOMS) - {""} <= allowed.keys()
    for room in set(_ROOMS) - {""}:
        found = imported_rooms(SOURCE / room) - {room, "records", "errors", "config"}
        assert found == allowed[room], f"{room} imports from {sorted(found)}"
    for module in ("records", "errors", "config"):
        assert imported_rooms(SOURCE / f"{module}.py") <= {"records", "errors", "config"}


def test_every_reason_in_the_code_is_documented() -> None:
    found = reasons_in_code()
    assert len(found) > 20, "the search for reasons has gone blind"
    assert found - documented_reasons() == set()


def test_no_documented_reason_is_gone_from_the_code() -> None:
    assert documented_reasons() - reasons_in_code() == set()


def test_every_reason_that_occurs_is_documented(tmp_path: Path) -> None:
    generate(tmp_path / "sample", entities=100, vectors=60, metadata_rows=20, lines=200, conversations=200)
    found = inspection.inspect(
        discover(tmp_path / "sample"), schema_names(None), on_phase=lambda _: None, stop_if_asked=lambda: None
    )
    occurring = {hazard.reason for store in found.stores for data in store.datasets for hazard in data.hazards}
    assert len(occurring) > 20
    known = [re.compile(re.escape(reason).replace("…", ".+")) for reason in documented_reasons()]
    assert [reason for reason in occurring if not any(pattern.fullmatch(reason) for pattern in known)] == []


@pytest.mark.parametrize(
    ("page", "records"),
    [
        ("inspect", (inspection.InspectedStore, inspection.InspectedDataset, inspection.Hazard)),
        ("migrate", (report.MigrationReport, report.DatasetReport, report.Problem)),
        (
            "verify",
            (verification.VerificationReport, verification.DatasetVerification, verification.RecordDifference),
        ),
        ("status", (status.Status, status.SourceStatus, status.DatasetStatus)),
        ("server", (ServerStatus, EmbeddedDatabase)),
        (
            "rollback",
            (
                restore_report.RollbackReport,
                restore_report.StoreRollback,
                restore_report.DatasetRollback,
                restore_report.Note,
            ),
        ),
        ("adopt", (adoption.Adopted,)),
        ("cutover", (CutoverReport, Condition, Window, Figures, Comparisons)),
        ("monitor", (WatchReport, Stretch)),
        ("log", (log_view.Logs, arming.InstalledLog, arming.RemovedLog, arming.LogStatus, arming.NotLogged)),
    ],
)
def test_every_key_of_the_json_is_explained(page: str, records: tuple[type[Any], ...]) -> None:
    text = (DOCS / "commands" / f"{page}.md").read_text("utf-8")
    keys = {field.name for record in records for field in dataclasses.fields(record)}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_every_kind_of_loss_is_explained() -> None:
    kinds = set(re.findall(r"``([a-z]+-[a-z]+)``", chroma_loss.Loss.__doc__ or ""))
    assert len(kinds) > 10
    table = re.search(r"<!-- losses -->(.*?)<!-- end -->", (DOCS / "chroma.md").read_text("utf-8"), re.DOTALL)
    assert table is not None
    assert set(re.findall(r"^\| `([^`]+)` \|", table[1], re.MULTILINE)) == kinds


def test_every_origin_of_a_vector_is_explained() -> None:
    text = (DOCS / "chroma.md").read_text("utf-8")
    assert [origin for origin in get_args(VectorOrigin) if f"| `{origin}` |" not in text] == []


def test_every_form_of_a_date_is_explained() -> None:
    text = (DOCS / "mappings.md").read_text("utf-8")
    plain = {re.sub(r" (Z|\+00:00)$", "", name) for name in FORMS}
    assert [name for name in sorted(plain) if f"`{name}`" not in text] == []


def test_every_setting_is_explained() -> None:
    text = (DOCS / "commands" / "server.md").read_text("utf-8")
    names = ["DATABASE_URL", *(f"ICEBURG_{name.upper()}" for name in config.Settings.model_fields)]
    names.remove("ICEBURG_DATABASE_URL")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_table_of_the_schema_is_explained() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    tables = [name for file in schema_files() for name in re.findall(r"CREATE TABLE \{\w+\}\.(\w+)", file.text)]
    assert len(tables) > 10
    assert [name for name in tables if f"`{name}`" not in text] == []


def test_every_column_of_the_plans_tables_is_explained() -> None:
    text = (DOCS / "mappings.md").read_text("utf-8")
    (plan,) = (file.text for file in schema_files() if file.number == 1)
    names = re.findall(r'^    "?(\w+)"? [A-Za-z]', plan, re.MULTILINE)
    assert len(names) > 30
    assert [name for name in sorted(set(names)) if f"`{name}`" not in text] == []


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += [entry for extra in project["project"].get("optional-dependencies", {}).values() for entry in extra]
    wanted += [entry for group in project.get("dependency-groups", {}).values() for entry in group]
    names = {re.split(r"[\[<>=!~; ]", entry)[0] for entry in wanted}
    listed = set(re.findall(r"^\| `([^`]+)` \|", (DOCS / "dependencies.md").read_text("utf-8"), re.MULTILINE))
    assert listed == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_path_of_the_writers_machine(page: Path) -> None:
    assert re.findall(r"/(?:home/\w|tmp/|work/)\S*", page.read_text("utf-8")) == []


def main() -> int:
    """Write all generated blocks anew."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if renewed(text) != text:
            page.write_text(renewed(text), "utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}: written anew{os.linesep}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
