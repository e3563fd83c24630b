"""The command that takes existing Chroma directories into the unified layer's own embeddings."""

from __future__ import annotations

from iceburg import console
from iceburg.adoption_view import Adoption
from iceburg.cli.application import FINDINGS, OK, AsJson, Chroma, DataDir, Exclude, app, exits, stoppable
from iceburg.database.adoption import Adopted, NotAdopted, adopt_collections
from iceburg.database.layout import Layout
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.errors import UsageError
from iceburg.progress_view import ProgressView
from iceburg.sources.discovery import discover


@app.command()
@exits
def adopt(data_dir: DataDir, chroma: Chroma = None, exclude: Exclude = None, as_json: AsJson = False) -> int:
    """Take the collections of Chroma directories into vectors.db, which the unified layer reads. Each once."""
    layout = Layout.of(data_dir)
    found: list[Adopted | NotAdopted] = []
    with stoppable() as stop, ProgressView() as view:
        stores = discover(data_dir, chroma=chroma or ["**"], exclude=exclude or ())
        if not stores:
            raise UsageError("No Chroma directory was found.", where=str(data_dir), hint="Is it the right directory?")
        with SqliteAdapter(layout) as embedded:
            for store in stores:
                view.phase(f"{store.name}: taking it over, and comparing it with what was taken")
                for one in adopt_collections(embedded.embeddings, store):
                    found.append(one)
                    stop.check()
    report = Adoption(layout.vectors.name, tuple(found))
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_adoption(report)
    return OK if report.status == "complete" else FINDINGS
