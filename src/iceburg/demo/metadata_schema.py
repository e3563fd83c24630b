"""The ordinary tables of the metadata database, in a small notation, and the SQL made from it.

A column is ``name:kind``; ``?`` after the kind allows NULL, ``*`` asks for an index of its own, and ``=table`` names
the table that a ``ref`` refers to. The kinds:

======== ============================ ==========================================================
kind     declared as                  values
======== ============================ ==========================================================
key      TEXT PRIMARY KEY             ``<table>_<n>``
ref      TEXT, FOREIGN KEY            a key of the other table
unique   TEXT NOT NULL UNIQUE         one no other row has
word     TEXT                         a word, in several scripts
text     TEXT                         sentences
status   TEXT DEFAULT 'pending'       one of a few
json     TEXT                         a JSON object
list     TEXT                         a JSON array
at       REAL                         epoch seconds
score    REAL                         0 to 1
count    INTEGER DEFAULT 0            a small number
flag     BOOLEAN DEFAULT 0            0 or 1
cycle    TEXT                         one of twenty, in turn
lap      INTEGER DEFAULT 1            which turn: unique together with a ``cycle``
======== ============================ ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_NOTATION: Final = """
accounts: account_id:key email:unique display_name:word created_at:at* last_login:at? active:flag* preferences:json?
workspaces: workspace_id:key owner_id:ref=accounts* title:word settings:json created_at:at archived:flag
members: member_id:key workspace_id:ref=workspaces* account_id:ref=accounts* role:cycle turn:lap joined_at:at
sessions: session_id:key account_id:ref?=accounts* state:json opened_at:at* closed_at:at? client:word?
settings: setting_id:key setting_name:unique value:text value_type:word updated_at:at metadata:json?
agents: agent_id:key agent_name:unique model:word enabled:flag* temperature:score registered_at:at
agent_runs: run_id:key agent_id:ref=agents* session_id:ref?=sessions* task:word* seconds:score
    succeeded:flag* tokens_in:count tokens_out:count error:text? started_at:at* metadata:json?
agent_handovers: handover_id:key from_run:ref=agent_runs* to_run:ref=agent_runs* reason:text overhead:score at:at
teams: team_id:key session_id:ref=sessions* agents:list pattern:word quality:score formed_at:at* metadata:json?
concepts: concept_id:key label:word* domain:word* definition:text confidence:score created_at:at
    updated_at:at metadata:json?
concept_links: link_id:key source_concept:ref=concepts* target_concept:ref=concepts* relation:word*
    strength:score evidence:list? created_at:at
principles: principle_id:key principle_name:cycle version:lap statement:text current:flag* created_at:at*
principle_changes: change_id:key principle_id:ref=principles* before:json? after:json? changed_at:at
questions: question_id:key text:text kind:word* domain:word* asked_at:at* answered:flag* quality:score?
answers: answer_id:key question_id:ref=questions* body:text confidence:score answered_at:at* sources:list?
gaps: gap_id:key description:text uncertainty:score related:list priority:score* resolved:flag* noted_at:at
    resolved_at:at?
hypotheses: hypothesis_id:key question_id:ref?=questions* statement:text prior:score posterior:score?
    status:status* created_at:at
experiments: experiment_id:key hypothesis_id:ref=hypotheses* design:json outcome:text? status:status*
    started_at:at ended_at:at?
discoveries: discovery_id:key title:word* description:text domains:list confidence:score validated:flag* created_at:at
syntheses: synthesis_id:key domains:list method:word result:text quality:score seconds:score succeeded:flag made_at:at
memories: memory_id:key kind:word* domain:word* content:text importance:score accesses:count last_access:at*
    links:list?
memory_links: memory_link_id:key memory_id:ref=memories* other_id:ref=memories weight:score
trends: trend_id:key technology:word* level:word signals:count growth:score first_seen:at last_seen:at metadata:json?
models: model_id:key model_name:cycle revision:lap capabilities:json released_at:at?
evaluations: evaluation_id:key model_id:ref=models* benchmark:word* score:score predicted:score? ran_at:at
optimisations: optimisation_id:key component:word* before:score after:score effort:status applied_at:at?
documents: document_id:key checksum:unique title:word body:text pages:count language:word indexed_at:at*
citations: citation_id:key document_id:ref=documents* answer_id:ref?=answers* quote:text page:count
ledger_blocks: block_id:key block_hash:unique previous_hash:word? payload:json sealed_at:at* nonce:count
verifications: verification_id:key block_id:ref=ledger_blocks* verdict:status checked_at:at
health_profiles: profile_id:key account_id:ref=accounts* measures:json consent:flag created_at:at
health_readings: reading_id:key profile_id:ref=health_profiles* metric:word* value:score taken_at:at* note:text?
interventions: intervention_id:key profile_id:ref=health_profiles* plan:text status:status* accepted:flag
    proposed_at:at
feedback: feedback_id:key intervention_id:ref=interventions* account_id:ref?=accounts rating:count
    comment:text? given_at:at
shares: share_id:key shared_by:ref=accounts* shared_with:ref=accounts* document_id:ref?=documents
    revoked:flag shared_at:at
"""
_UNIQUE: Final = {
    "members": ("role", "turn"),
    "principles": ("principle_name", "version"),
    "models": ("model_name", "revision"),
}
_COMPOUND_INDEXES: Final = {
    "agent_runs": ("task", "started_at"),
    "concept_links": ("source_concept", "target_concept"),
    "health_readings": ("profile_id", "metric", "taken_at"),
}
_DECLARED: Final = {
    "key": "TEXT PRIMARY KEY", "ref": "TEXT", "unique": "TEXT", "word": "TEXT", "text": "TEXT", "json": "TEXT",
    "list": "TEXT", "at": "REAL", "score": "REAL", "cycle": "TEXT", "status": "TEXT DEFAULT 'pending'",
    "count": "INTEGER DEFAULT 0", "flag": "BOOLEAN DEFAULT 0", "lap": "INTEGER DEFAULT 1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its kind, whether it may be NULL, whether it has an index, which table it refers to."""

    name: str
    kind: str
    nullable: bool
    indexed: bool
    parent: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table and its columns."""

    name: str
    columns: tuple[Column, ...]

    def statements(self) -> Iterator[str]:
        """Yield the SQL that makes the table and its indexes."""
        parts = []
        for column in self.columns:
            declared = f"{column.name} {_DECLARED[column.kind]}"
            if not column.nullable and column.kind != "key":
                declared += " NOT NULL"
            parts.append(declared + (" UNIQUE" if column.kind == "unique" else ""))
        if self.name in _UNIQUE:
            parts.append(f"UNIQUE ({', '.join(_UNIQUE[self.name])})")
        for column in self.columns:
            if column.parent:
                key = next(c.name for c in TABLES[column.parent].columns if c.kind == "key")
                parts.append(f"FOREIGN KEY ({column.name}) REFERENCES {column.parent}({key})")
        yield f"CREATE TABLE {self.name} (\n    " + ",\n    ".join(parts) + "\n)"
        for column in self.columns:
            if column.indexed:
                yield f"CREATE INDEX idx_{self.name}_{column.name} ON {self.name}({column.name})"
        if self.name in _COMPOUND_INDEXES:
            columns = _COMPOUND_INDEXES[self.name]
            yield f"CREATE INDEX idx_{self.name}_{'_'.join(columns)}_all ON {self.name}({', '.join(columns)})"


def _lines() -> list[str]:
    # An indented line goes on with the one before it.
    return _NOTATION.strip().replace("\n    ", " ").splitlines()


def _parse(line: str) -> Table:
    name, columns = line.split(": ")
    parsed = []
    for word in columns.split():
        column, rest = word.split(":")
        indexed = rest.endswith("*")
        kind, _, parent = rest.removesuffix("*").partition("=")
        parsed.append(Column(column, kind.removesuffix("?"), kind.endswith("?"), indexed, parent))
    return Table(name, tuple(parsed))


TABLES: Final[dict[str, Table]] = {table.name: table for table in map(_parse, _lines())}
