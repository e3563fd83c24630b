"""A consistency check that is noted among the runs: what the gate asks for."""

from __future__ import annotations

from iceburg.database.connection import Target, connect
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.migration.ledger import Ledger
from iceburg.migration.worker import StoppedError
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.consistency_report import ConsistencyReport


def run_recorded(check: ConsistencyCheck, target: Target, names: SchemaNames, *, narrowed: bool) -> ConsistencyReport:
    """Run a check, and note it: when it ended, and whether both sides were identical.

    Parameters
    ----------
    check
        The check.
    target, names
        What it compares with.
    narrowed
        Whether it is of a part of the installation: such a one says nothing to the gate, unless something differs.

    Raises
    ------
    TargetError, StoppedError
        As `ConsistencyCheck.run`.
    """
    with connect(target.dsn, autocommit=True) as connection:
        check_schema(connection, names)
        ledger = Ledger(connection, names)
        run_id = ledger.start_run("check")
        try:
            report = check.run()
        except BaseException as error:
            if not connection.closed:
                ended = "interrupted" if isinstance(error, StoppedError) else "failed"
                ledger.finish_run(run_id, ended, {"error": str(error)})
            raise
        ledger.finish_run(run_id, _status(report), {"summary": report.summary(), "narrowed": narrowed})
    return report


def _status(report: ConsistencyReport) -> str:
    """Return how a check has ended: what could not be compared is no difference, and no proof either."""
    if report.status == "identical" or report.differences:
        return report.status
    # Such as a store that was made a moment ago.
    return "incomplete" if report.problems else "unsettled"
