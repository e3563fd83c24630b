"""How a verification and a check are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from iceburg.verification.consistency_report import ConsistencyReport
    from iceburg.verification.report import RecordDifference, VerificationReport

# Of an answer only its beginning is shown: the document and the page have more.
_LONGEST: Final = 120


def render_verification(console: Console, report: VerificationReport, make_table: Callable[..., Table]) -> None:
    """Print a verification's table and the differences."""
    table = make_table("dataset", "source rows", "target rows", "quarantined", "compared", "differences")
    for dataset in report.datasets:
        table.add_row(
            dataset.dataset,
            f"{dataset.source_rows:,}",
            f"{dataset.target_rows:,}",
            f"{dataset.quarantined_rows:,}",
            f"{dataset.compared_rows:,}",
            f"{dataset.differences:,}",
        )
    console.print(table)
    console.print()
    for recall in report.recall:
        if recall.recall is not None:
            settings = ", ".join(f"{name} = {value}" for name, value in (recall.options | recall.search).items())
            console.print(f"Recall: {recall.collection}: {recall.recall:.2%} by {recall.kind} ({settings})")
    for repair in report.repairs:
        key = f", key {repair.key}" if repair.key else ""
        problem = "" if repair.problem is None else f": {repair.problem}"
        console.print(f"Repair: {repair.dataset}{key}: {repair.action}{problem}")
    _show_differences(console, "Different", report.differences)
    for query in report.queries:
        if not query.identical:
            example = query.example or {}
            console.print(
                f"Other answer: {query.store}, {query.query}, {query.different} of {query.asked} times:"
                f" {_cut(example.get('arguments'))}: source {_cut(example.get('source'))},"
                f" target {_cut(example.get('target'))}"
            )
    for silent in report.not_asked:
        console.print(f"Not asked: {silent['dataset']}: {silent['why']}")
    for trouble in report.problems:
        console.print(f"Problem: {trouble['source']}: {trouble['problem']}")
    compared = sum(dataset.compared_rows for dataset in report.datasets)
    what = "a sample of " if report.sampled else ""
    asked = sum(query.asked for query in report.queries)
    amcheck = report.structure.why_not or f"{report.structure.indexes:,} indexes looked through"
    console.print(f"Answers: {asked:,} compared. Structure: {report.structure.tables:,} tables, {amcheck}.")
    console.print(f"{report.status.capitalize()}: {what}{compared:,} records compared in {report.seconds:.1f} s.")


def _cut(value: Any) -> str:
    text = _quoted(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _show_differences(console: Console, what: str, differences: tuple[RecordDifference, ...]) -> None:
    for difference in differences:
        console.print(
            f"{what}: {difference.dataset}, key {difference.key}, {difference.field}:"
            f" source {_quoted(difference.source)}, target {_quoted(difference.target)}"
        )


def render_consistency(console: Console, report: ConsistencyReport, make_table: Callable[..., Table]) -> None:
    """Print the table of a check, the differences, and what could not be settled."""
    columns = (
        "dataset",
        "source rows",
        "target rows",
        "quarantined",
        "compared",
        "rechecked",
        "differences",
        "unsettled",
    )
    table = make_table(*columns)
    for dataset in report.datasets:
        counts = (
            dataset.source_rows,
            dataset.target_rows,
            dataset.quarantined_rows,
            dataset.compared_rows,
            dataset.rechecked,
            dataset.differences,
            dataset.unsettled,
        )
        table.add_row(dataset.dataset, *(f"{count:,}" for count in counts))
    console.print(table)
    console.print()
    _show_differences(console, "Different", report.differences)
    _show_differences(console, "Unsettled", report.unsettled)
    for passed in report.passed_over:
        console.print(f"Passed over: {passed['dataset']}: {passed['why']}")
    for problem in report.problems:
        console.print(f"Problem: {problem['source']}: {problem['problem']}")
    compared = sum(dataset.compared_rows for dataset in report.datasets)
    console.print(f"{report.status.capitalize()}: {compared:,} records compared in {report.seconds:.1f} s.")


def _quoted(value: object) -> str:
    return json.dumps(value, default=str)
