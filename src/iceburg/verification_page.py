"""A verification as one self-contained page for a browser: no scripts, nothing loaded, charts as inline SVG."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from iceburg.errors import UsageError
from iceburg.verification.report import VerificationReport

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1d232b; --back: #fbfbfa; --dim: #667180; --line: #d9dde2; --good: #2f7d4f;
  --bad: #b3382c; --bar: #3b6ea8; --pale: #b7c9de }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --back: #15191e; --dim: #93a0ae; --line: #2f3842;
  --good: #62b985; --bad: #ec7d6f; --bar: #6fa3db; --pale: #34506e } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 72rem;
  margin: 2rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.dim { color: var(--dim) } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere }
th { color: var(--dim); font-weight: 500 } td.n, th.n { text-align: right; white-space: nowrap }
code { font-size: .88em } svg { width: 100%; height: auto } svg text { fill: var(--text); font-size: 12px }
svg .faint { fill: var(--dim) } .scroll { overflow-x: auto }
"""
_ROW: Final = 22
_LEFT: Final = 330
_WIDTH: Final = 960


def check_page(path: Path) -> None:
    """See that a page can be written there, before the work that it is to tell of.

    Raises
    ------
    UsageError
        It cannot.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a directory." if path.is_dir() else "lies in no directory that is there."
        raise UsageError(f"{path} {what}", where="--html", hint="Give a file in a directory that exists.")


def write_page(path: Path, report: VerificationReport, target: str) -> None:
    """Write the page, readable by its owner alone; whole or not at all.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(render_page(report, target))
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}.", where="--html") from error


def render_page(report: VerificationReport, target: str) -> str:
    """Return the page."""
    compared = sum(dataset.compared_rows for dataset in report.datasets)
    asked = sum(query.asked for query in report.queries)
    kind = "good" if report.status == "identical" else "bad"
    sample = "a sample of " if report.sampled else ""
    parts = [
        f'<h1 class="{kind}">{report.status.capitalize()}</h1>',
        f'<p class="dim">{sample}{compared:,} records, {asked:,} answers and {report.structure.tables:,} tables'
        f" compared in {report.seconds:,.1f} s. Run {report.run_id}, seed {report.seed}. Target: {escape(target)}</p>",
        _section("Records", _record_chart(report)),
        _section("Datasets", _datasets(report)),
        _section("Differences", _differences(report)),
        _section("Problems", _table(("store", "problem"), ((p["source"], p["problem"]) for p in report.problems))),
        _section("Repairs", _repairs(report)),
        _section("Answers", _queries(report)),
        _section("Recall of the vector indexes", _recall_chart(report) + _recall(report)),
        _section("Structure", _structure(report)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Verification: '
        f'{report.status}</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{''.join(parts)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>\n{body}\n" if body else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = []
    for row in rows:
        cells = "".join(
            f'<td class="n">{value:,}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"
            for value in row
        )
        lines.append(f"<tr>{cells}</tr>")
    if not lines:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><tr>{names}</tr>{"".join(lines)}</table></div>'


def _record_chart(report: VerificationReport) -> str:
    """Draw a bar for each dataset: what was compared now, what earlier, and where it differs."""
    found = sorted(report.datasets, key=lambda d: (-d.differences, -d.source_rows))[:40]
    most = max((max(d.source_rows, d.target_rows) for d in found), default=0)
    if not most:
        return ""
    scale = (_WIDTH - _LEFT - 120) / most
    bars = []
    for i, dataset in enumerate(found):
        y = i * _ROW
        old = dataset.unchanged_rows * scale
        new = max(0.0, (dataset.compared_rows - dataset.unchanged_rows) * scale)
        note = f"{dataset.compared_rows:,}" + (f", {dataset.differences:,} differ" if dataset.differences else "")
        colour = "bad" if dataset.differences else "bar"
        bars.append(
            f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(dataset.dataset[-48:])}</text>'
            f'<rect x="{_LEFT}" y="{y + 4}" width="{max(1.0, old):.1f}" height="14" fill="var(--pale)"/>'
            f'<rect x="{_LEFT + old:.1f}" y="{y + 4}" width="{max(1.0, new):.1f}" height="14" fill="var(--{colour})"/>'
            f'<text class="faint" x="{_LEFT + old + new + 8:.1f}" y="{y + 15}">{note}</text>'
        )
    more = len(report.datasets) - len(found)
    rest = f'<p class="dim">and {more} smaller datasets</p>' if more else ""
    label = "Records compared, by dataset; pale: compared by an earlier verification, and unchanged since"
    return (
        f'<p class="dim">{label}.</p><svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} '
        f'{len(found) * _ROW + 4}">{"".join(bars)}</svg>{rest}'
    )


def _datasets(report: VerificationReport) -> str:
    head = ("dataset", "source rows", "target rows", "quarantined", "compared", "differences")
    return _table(
        head,
        (
            (d.dataset, d.source_rows, d.target_rows, d.quarantined_rows, d.compared_rows, d.differences)
            for d in report.datasets
        ),
    )


def _differences(report: VerificationReport) -> str:
    head = ("dataset", "key", "field", "source", "target", "found by")
    return _table(
        head, ((d.dataset, d.key, d.field, repr(d.source), repr(d.target), d.found_by) for d in report.differences)
    )


def _repairs(report: VerificationReport) -> str:
    return _table(
        ("dataset", "key", "what was done", "problem"),
        ((r.dataset, r.key, r.action, r.problem or "") for r in report.repairs),
    )


def _queries(report: VerificationReport) -> str:
    rows = [
        (q.store, q.query, q.asked, q.different, "" if q.example is None else str(q.example)) for q in report.queries
    ]
    rows.sort(key=lambda row: -int(row[3]))
    not_asked = _table(("not asked of", "why"), ((one["dataset"], one["why"]) for one in report.not_asked))
    return _table(("store", "question", "asked", "different", "example"), rows) + not_asked


def _recall_chart(report: VerificationReport) -> str:
    """Draw the share that each index finds of the nearest records; the line is at 99 %."""
    found = [one for one in report.recall if one.recall is not None]
    if not found:
        return ""
    width = _WIDTH - _LEFT - 120
    bars = []
    for i, one in enumerate(found):
        y, length = i * _ROW, width * (one.recall or 0)
        colour = "bar" if (one.recall or 0) >= 0.99 else "bad"
        bars.append(
            f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(one.collection[-48:])}</text>'
            f'<rect x="{_LEFT}" y="{y + 4}" width="{length:.1f}" height="14" fill="var(--{colour})"/>'
            f'<text class="faint" x="{_LEFT + length + 8:.1f}" y="{y + 15}">{one.recall:.2%} {one.kind}</text>'
        )
    line = _LEFT + width * 0.99
    height = len(found) * _ROW + 4
    return (
        f'<svg role="img" aria-label="Recall at 8, by collection" viewBox="0 0 {_WIDTH} {height}">{"".join(bars)}'
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="0" y2="{height}" stroke="var(--dim)" stroke-dasharray="3 3"/></svg>'
    )


def _recall(report: VerificationReport) -> str:
    def settings(values: dict[str, int]) -> str:
        return ", ".join(f"{name} = {value}" for name, value in values.items())

    return _table(
        ("collection", "index", "made with", "searched with", "recall@8", "queries", "used by itself"),
        (
            (
                one.collection,
                one.kind,
                settings(one.options),
                settings(one.search),
                "exact" if one.recall is None else f"{one.recall:.2%}",
                one.queries,
                "yes" if one.chosen else "no: the collection is read whole",
            )
            for one in report.recall
        ),
    )


def _structure(report: VerificationReport) -> str:
    looked = report.structure.why_not or f"{report.structure.indexes:,} indexes looked through by amcheck"
    return f"<p>{report.structure.tables:,} tables compared with what they should be; {escape(looked)}.</p>"
