"""An installation on its way through the gate, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database.connection import Target, connect
from iceburg.database.layout import Layout
from iceburg.database.phases import PhaseChange, phase_changes, read_phase
from iceburg.database.protocol import Entity
from iceburg.database.schema import schema_names
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.migration.follower import Follower
from iceburg.monitoring.cutover import CutoverReport, cut_over, go_back
from iceburg.monitoring.gate import Condition, Limits, evaluate
from iceburg.monitoring.probe import Probe, ProbeReport
from iceburg.records import Store
from iceburg.sources.discovery import discover
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.consistency_report import ConsistencyReport
from iceburg.verification.recorded_check import run_recorded
from tests.support import Listener, migrate_live

NAMES = schema_names(None)
# How fast a busy machine is, is not what is tested.
LIMITS = Limits(comparisons=20, floor_ms=60_000, samples=1, patience=0.1)

# Behind the appliers' back: PostgreSQL answers something else.
TAMPER = "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{name}', to_jsonb('Not ' || name))"
MEND = "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{name}', to_jsonb(replace(name, 'Not ', '')))"


class World:
    """An installation in phase following, with what is done to it."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.data, self.flag, self.dsn = folder / "data", folder / "flag", dsn
        self.data.mkdir()
        with self.layer() as unified:
            unified.matrix.put_many([Entity(f"e{n}", f"Name {n}", "person") for n in range(40)])
            unified.conversations.save("c", "question", "answer")
            unified.telemetry.append({"event_type": "first", "timestamp": 1.0})
        report = migrate_live(dsn, self.data, vector_index="none")
        assert (report.status, report.problems) == ("complete", ())

    def settings(self, **others: Any) -> Settings:
        """Return the settings of a process."""
        given = {"data_dir": self.data, "database_url": SecretStr(self.dsn), "flag_file": self.flag}
        return Settings(**{**given, "postgres_timeout": 5, **others})

    def layer(self, **others: Any) -> UnifiedDatabase:
        """Return a process's unified layer."""
        return UnifiedDatabase(self.settings(**others))

    def target(self) -> Target:
        """Return the target."""
        return Target(self.dsn, "test", embedded=False)

    def follow(self) -> None:
        """Apply everything, and say so."""
        Follower(
            self.target(),
            self.data,
            NAMES,
            rediscover=lambda: discover(self.data),
            stopping=lambda: False,
            hear=lambda status: None,
            once=True,
        ).run()

    def check(self, taken_in: float = 0, stores: Sequence[Store] | None = None) -> ConsistencyReport:
        """Compare both sides, and have it noted."""
        check = ConsistencyCheck(
            self.target(),
            self.discover() if stores is None else stores,
            NAMES,
            limit=5,
            narrowed=False,
            listener=Listener(),
            stopping=lambda: False,
            patience=0.1,
            taken_in=taken_in,
            rediscover=self.discover,
        )
        return run_recorded(check, self.target(), NAMES, narrowed=False)

    def probe(self, count: int = 30, dsn: str | None = None) -> ProbeReport:
        """Ask both sides."""
        with (
            connect(self.dsn, autocommit=True) as connection,
            Probe(Layout.of(self.data), dsn or self.dsn, NAMES, timeout=10 if dsn is None else 0.5) as probe,
        ):
            return probe.run(count, connection, lambda: False)

    def make_ready(self) -> None:
        """Have every condition hold."""
        self.follow()
        self.check()
        self.probe()

    def discover(self) -> list[Store]:
        """Find what is in the data directory."""
        return list(discover(self.data))

    def conditions(
        self, limits: Limits = LIMITS, since: datetime | None = None, taken_in: float = 0
    ) -> dict[str, Condition]:
        """Evaluate the gate."""
        with connect(self.dsn, autocommit=True) as connection:
            found = evaluate(connection, NAMES, self.discover, limits, since=since, taken_in=taken_in)
        return {condition.name: condition for condition in found}

    def broken(self, limits: Limits = LIMITS, since: datetime | None = None) -> set[str]:
        """Return the names of what does not hold."""
        return {name for name, found in self.conditions(limits, since).items() if not found.held}

    def cut_over(self, *, dry_run: bool = False, **settings: Any) -> CutoverReport:
        """Go through the gate."""
        with connect(self.dsn, autocommit=True) as connection:
            return cut_over(connection, NAMES, self.discover, self.settings(**settings), LIMITS, dry_run=dry_run)

    def go_back(self) -> CutoverReport:
        """Go back."""

        return go_back(
            self.settings(), lambda: connect(self.dsn, autocommit=True), NAMES, self.check, lambda text: None
        )

    @property
    def phase(self) -> str:
        """The phase."""
        with connect(self.dsn, autocommit=True) as connection:
            return read_phase(connection, NAMES).phase.value

    @property
    def last_move(self) -> PhaseChange:
        """The last move."""
        with connect(self.dsn, autocommit=True) as connection:
            return phase_changes(connection, NAMES, 1)[0]

    @property
    def flag_says(self) -> str:
        """What the flag file holds."""
        return self.flag.read_text().strip() if self.flag.exists() else ""
