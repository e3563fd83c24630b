"""The Matrix store: entities and relationships."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from iceburg.demo import words
from iceburg.demo.json_oddities import few_json_oddities, json_oddities
from iceburg.demo.manifest import Dataset, OddValue, StoreContents
from iceburg.demo.sqlite_file import Oddity, Progress, RawText, SqlValue, building, place, write_rows

_SCHEMA: Final = """
CREATE TABLE entities (
    entity_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    source TEXT,
    properties TEXT,
    countries TEXT,
    datasets TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE relationships (
    relationship_id TEXT PRIMARY KEY,
    source_id TEXT NOT NULL,
    target_id TEXT NOT NULL,
    relationship_type TEXT NOT NULL,
    properties TEXT,
    source TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
"""
_INDEXES: Final = """
CREATE INDEX idx_entities_name ON entities(name);
CREATE INDEX idx_entities_type ON entities(entity_type);
CREATE INDEX idx_entities_source ON entities(source);
CREATE INDEX idx_rel_source ON relationships(source_id);
CREATE INDEX idx_rel_target ON relationships(target_id);
"""
_ENTITY: Final = ("entity_id", "name", "entity_type", "source", "properties", "countries", "datasets", "created_at")
_RELATIONSHIP: Final = (
    "relationship_id", "source_id", "target_id", "relationship_type", "properties", "source", "created_at",
)  # fmt: skip
_KINDS: Final = ("ownership", "directorship", "family", "employment", "associate", "membership")
_PERSON_BELOW = 8  # of 16 entities, how many are people
_TYPES: Final = ("company",) * 4 + ("organization",) * 2 + ("legalentity",) * 2
_ID_BITS = 88
_DANGLING_EVERY = 50

# Odd, so that n -> n * _SPREAD is one to one modulo 2^88: ids are unique, look random, and are known from n alone.
_SPREAD = 0x9E3779B97F4A7C15F39CC1

ODD_ENTITIES: Final[tuple[Oddity, ...]] = (
    *json_oddities("properties"),
    Oddity("invalid JSON", "countries", "us, gb"),
    Oddity("empty text for JSON", "countries", ""),
    Oddity("empty text for JSON", "datasets", ""),
    Oddity("\\u0000 in JSON", "datasets", '["list\\u0000"]'),
    Oddity("text over 100 characters", "entity_type", "x" * 99 + "🧊" + "y" * 40),
    Oddity("empty text", "entity_type", ""),
    Oddity("NUL character", "entity_type", "com\x00pany"),
    Oddity("NUL character", "name", "Nul\x00Holdings"),
    Oddity("invalid UTF-8", "name", RawText(b"Caf\xe9 M\xfcller \xed\xa0\x80")),
    Oddity("text of 10,000 characters", "name", "".join(f"{n * 7919 % 99991:05d}" for n in range(2000))),
    Oddity("empty text", "name", ""),
    Oddity("BLOB for text", "name", b"\x00\xff name"),
    Oddity("invalid UTF-8", "source", RawText(b"ic\xff\xfe")),
    Oddity("NUL character", "entity_id", "osanc_NK-nul\x00id"),
    Oddity("invalid UTF-8", "entity_id", RawText(b"osanc_NK-\xc3\x28")),
    Oddity("empty text", "entity_id", ""),
    Oddity("NULL in a primary key", "entity_id", None),
    Oddity("NULL in a primary key", "entity_id", None),
    Oddity("BLOB for text", "entity_id", b"osanc_NK-blob"),
    Oddity("ISO 8601 with Z", "created_at", "2025-06-01T00:00:00Z"),
    Oddity("ISO 8601 with offset", "created_at", "2025-06-01T02:00:00.5+02:00"),
    Oddity("date only", "created_at", "2025-06-01"),
    Oddity("not a time", "created_at", "yesterday"),
    Oddity("impossible date", "created_at", "2025-02-30 00:00:00"),
    Oddity("24:00:00", "created_at", "2025-06-01 24:00:00"),
    Oddity("NULL time", "created_at", None),
    Oddity("epoch seconds", "created_at", "1748736000"),
    Oddity("epoch milliseconds", "created_at", "1748736000123"),
    Oddity("year before 1", "created_at", "-4712-01-01 00:00:00"),
)
ODD_RELATIONSHIPS: Final[tuple[Oddity, ...]] = (
    *few_json_oddities("properties"),
    Oddity("text over 100 characters", "relationship_type", "z" * 140),
    Oddity("NUL character", "relationship_id", "rel_nul\x00"),
    Oddity("NUL character", "target_id", "osanc_NK-nul\x00id"),
    Oddity("invalid UTF-8", "source_id", RawText(b"osanc_NK-\xc3\x28")),
    Oddity("not a time", "created_at", "soon"),
)


def entity_id(seed: int, number: int) -> str:
    """Return the id of the entity of that number, counted from 0; one in eight has another form than the usual."""
    code = ((number + 1) * _SPREAD + seed * 0x1000193) & ((1 << _ID_BITS) - 1)
    match number % 16:
        case 7:
            return f"NK-{code:022x}"
        case 11:
            return f"osanc_Q{code}"
        case _:
            return f"osanc_NK-{code:022x}"


def _entities(seed: int) -> Iterator[tuple[SqlValue, ...]]:
    # One draw of random bits a row, cut up by shifts: 1.5 million rows are to take seconds, not minutes.
    draw = words.stream(seed, "entities").getrandbits
    number = 0
    while True:
        bits = draw(128)
        kind = bits & 15
        given = words.GIVEN[(bits >> 4) % len(words.GIVEN)]
        family = words.FAMILY[(bits >> 12) % len(words.FAMILY)]
        countries = [words.COUNTRIES[(bits >> 20) & 15], words.COUNTRIES[(bits >> 24) & 15]][: (bits >> 28) % 3]
        lists = [words.LISTS[(bits >> shift) & 7] for shift in (30, 33, 36)][: 1 + (bits >> 39) % 3]
        city = words.CITIES[(bits >> 48) % len(words.CITIES)]
        year = 1930 + (bits >> 56) % 80
        date = f"{year}-{1 + (bits >> 64) % 12:02d}-{1 + (bits >> 68) % 28:02d}"
        decision = (bits >> 72) & 0xFFFF
        coined = words.COINED[(bits >> 108) & 0xFFF]
        properties: dict[str, object]
        if kind < _PERSON_BELOW:
            entity_type = "person"
            name = f"{given} {coined} {family}"
            properties = {
                "name": [name],
                "alias": [f"{family}, {given}", f"{given[:1]}. {family}"][: (bits >> 88) % 3],
                "country": countries,
                "topics": [words.TOPICS[(bits >> 90) & 7]],
                "birthDate": [date],
                "birthPlace": [city],
                "gender": ["female" if bits >> 93 & 1 else "male"],
                "position": [f"Member of committee {decision % 400}"],
                "firstName": [given],
                "lastName": [family],
                "notes": [f'Listed by decision {decision} — "{family}" \\ annex {decision % 9}\n'],
                "sourceUrl": [f"https://example.org/persons/{number}"],
            }
        else:
            entity_type = _TYPES[kind - _PERSON_BELOW]
            trade = words.TRADES[(bits >> 88) & 15]
            name = f"{coined} {family} {trade} {words.FORMS[(bits >> 92) % len(words.FORMS)]}"
            properties = {
                "name": [name],
                "alias": [],
                "jurisdiction": countries[:1],
                "country": countries,
                "incorporationDate": [date],
                "registrationNumber": [f"{decision:06d}-{number % 97}"],
                "address": [f"{1 + decision % 220} {given} Street, {city}"],
                "status": ["active" if bits >> 97 & 1 else "struck off"],
                "topics": [words.TOPICS[(bits >> 98) & 7], "corp.offshore"][: (bits >> 101) % 3],
                "owners": [{"share": (decision % 1000) / 10, "name": [f"{given} {family}"], "since": year}],
                "capital": {"amount": decision * 1000, "currency": "EUR"},
                "sourceUrl": [f"https://example.org/companies/{number}"],
            }
        if not decision & 1023:
            properties["keywords"] = [words.EMOJI[decision >> 10 & 3]]
        yield (
            entity_id(seed, number),
            name,
            entity_type,
            None if not decision & 63 else words.SOURCES[(bits >> 104) % len(words.SOURCES)],
            None if decision & 127 == 1 else json.dumps(properties),
            json.dumps(countries),
            None if decision & 127 == 2 else json.dumps(lists),
            words.stamp(bits >> 104),
        )
        number += 1


def _relationships(
    seed: int, entities: int, *, dangling: bool, avoid: Container[int]
) -> Iterator[tuple[SqlValue, ...]]:
    draw = words.stream(seed, "relationships").getrandbits
    number = 0
    while True:
        bits = draw(128)
        source, target = (bits >> 64) % entities, (bits & 0xFFFFFFFF) % entities
        # An entity whose id was made odd cannot be named by its usual id; entity 0 never is odd.
        source_id = entity_id(seed, 0 if source in avoid else source)
        if dangling and number % _DANGLING_EVERY == _DANGLING_EVERY - 1:
            target_id = f"osanc_NK-gone-{number}"
        else:
            target_id = entity_id(seed, 0 if target in avoid else target)
        choice = (bits >> 32) & 0xFFFF
        properties = {
            "domain": words.DOMAINS[choice & 7],
            "startDate": [str(1980 + choice % 45)],
            "share": (choice % 1001) / 10,
        }
        yield (
            f"rel_{number}",
            source_id,
            target_id,
            _KINDS[choice % len(_KINDS)],
            None if choice % 100 == 0 else json.dumps(properties),
            words.SOURCES[choice % len(words.SOURCES)],
            words.stamp(bits >> 40 & 0xFFFFFF),
        )
        number += 1


def write_matrix(
    path: Path, name: str, *, seed: int, entities: int, relationships: int, odd: bool, progress: Progress
) -> StoreContents:
    """Write the Matrix store and return what it holds."""
    odd_entities = place(ODD_ENTITIES if odd else (), entities)
    odd_relationships = place(ODD_RELATIONSHIPS if odd else (), relationships)
    renamed = {number for number, oddity in odd_entities.items() if oddity.column == "entity_id"}
    with building(path) as connection:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        found = write_rows(
            connection, "entities", _ENTITY, _entities(seed), entities, odd=odd_entities, progress=progress
        )
        rows = _relationships(seed, entities, dangling=odd, avoid=renamed)
        found += write_rows(
            connection, "relationships", _RELATIONSHIP, rows, relationships, odd=odd_relationships, progress=progress
        )
        progress(f"{name}: indexes")
        for statement in _INDEXES.split(";"):
            connection.execute(statement)
    missing = 0
    if odd:
        dangling = range(_DANGLING_EVERY - 1, relationships, _DANGLING_EVERY)
        missing = sum(n not in odd_relationships or odd_relationships[n].column != "target_id" for n in dangling)
    if missing:
        found.append(OddValue("dangling end", "relationships", "target_id", missing))
    return StoreContents(
        name,
        "sqlite",
        (Dataset("entities", "table", entities), Dataset("relationships", "table", relationships)),
        tuple(found),
    )
