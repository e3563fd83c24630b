"""The vocabulary of generated records: several scripts, marks, and characters beyond the first plane."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Final

GIVEN: Final = (
    "Amina", "Björn", "Chloé", "Dmitri", "Eszter", "Fahad", "Giulia", "Hana", "Ifeoma", "João", "Katarzyna", "Łukasz",
    "Mário", "Nguyễn", "Óscar", "Priya", "Quentin", "Rúna", "Søren", "Tomáš", "Uğur", "Véronique", "Wei", "Ximena",
    "Юрий", "Ольга", "Αλέξης", "Ελένη", "محمود", "ليلى", "דוד", "रवि", "小明", "さくら", "지훈", "ნინო",
)  # fmt: skip
FAMILY: Final = (
    "Abdullah", "Bjørnsen", "Castro", "Dvořák", "Eriksson", "Fernández", "García", "Hoxha", "Ivanov", "Jensen",
    "Kovács", "Lindqvist", "Müller", "Nakamura", "O'Connor", "Papadopoulos", "Quispe", "Rossi", "Şahin", "Tanaka",
    "Ujvári", "Vargas", "Wójcik", "Xu", "Yılmaz", "Çelik", "Петров", "Шевченко", "Παππάς", "الحسن", "כהן", "शर्मा", "王",
    "佐藤", "김", "ბერიძე",
)  # fmt: skip
TRADES: Final = (
    "Shipping", "Holdings", "Minerals", "Logistics", "Telecom", "Capital", "Trading", "Aviation", "Energy", "Fisheries",
    "Textiles", "Construction", "Petrochem", "Agro", "Maritime", "Finanz",
)  # fmt: skip
FORMS: Final = (
    "Ltd",
    "GmbH",
    "S.A.",
    "ООО",
    "AG",
    "LLC",
    "B.V.",
    "株式会社",
    "Oy",
    "A.Ş.",
    "Sp. z o.o.",
    "Inc.",
    "SARL",
    "KG",
)
CITIES: Final = (
    "Limassol",
    "Zürich",
    "Москва",
    "Panamá",
    "Dubai",
    "香港",
    "London",
    "Riga",
    "Tórshavn",
    "Αθήνα",
    "Lagos",
    "東京",
)
COUNTRIES: Final = ("cy", "ch", "ru", "pa", "ae", "hk", "gb", "lv", "fo", "gr", "ng", "jp", "us", "de", "vg", "mt")
TOPICS: Final = ("sanction", "role.pep", "role.rca", "crime.fin", "corp.offshore", "debarment", "poi", "gov.soe")
LISTS: Final = (
    "us_ofac_sdn", "eu_fsf", "gb_hmt_sanctions", "un_sc_sanctions", "ch_seco_sanctions", "ca_dfatd",
    "wd_peps", "icij_offshore",
)  # fmt: skip
SOURCES: Final = ("opensanctions", "icij", "gleif", "companies_house", "wikidata")
AGENTS: Final = ("surveyor", "dissident", "synthesist", "oracle", "archaeologist", "scrutineer", "secretary", "weaver")
MODES: Final = ("chat", "research", "prediction_lab", "astrophysiology", "fast")
MODELS: Final = ("llama3.1:8b", "qwen2.5:14b", "mistral-nemo", "phi3:mini", "gemma2:9b")
DOMAINS: Final = ("physics", "finance", "history", "etymology", "biology", "climate", "geopolitics", "mathematics")
NOUNS: Final = (
    "signal", "ledger", "pattern", "current", "archive", "hypothesis", "network", "estimate", "boundary", "cohort",
    "lattice", "register", "sediment", "margin", "protocol", "gradient", "résumé", "Größe", "данные", "数据",
    "🧊 core", "naïveté",
)  # fmt: skip
VERBS: Final = ("links", "outweighs", "predates", "explains", "contradicts", "follows", "amplifies", "limits", "hides")
EMOJI: Final = ("🧊", "🚢", "👩🏽‍🔬", "🇫🇴", "📈", "🜁")

_SYLLABLES = ("ka", "ro", "vin", "ta", "lei", "sur", "mo", "dan", "ze", "bru", "ny", "ost", "gha", "pel", "ij", "wen")
COINED: Final = tuple((a + b + c).capitalize() for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES)

_START = 1_735_689_600  # 2025-01-01 00:00:00 UTC
_SPAN = 31_000_000  # not quite a year, in seconds


def stream(seed: int, *parts: str) -> random.Random:
    """Return the random numbers of one part of the installation, the same on every machine."""
    return random.Random("/".join((str(seed), *parts)))  # noqa: S311 - sample data, not secrets


def sentence(rng: random.Random) -> str:
    """Return one sentence of three to five words."""
    bits = rng.getrandbits(30)
    first = NOUNS[bits % len(NOUNS)]
    verb = VERBS[(bits >> 8) % len(VERBS)]
    last = NOUNS[(bits >> 16) % len(NOUNS)]
    return f"The {first} {verb} the {last} of {DOMAINS[(bits >> 24) % len(DOMAINS)]}."


def prose(rng: random.Random, sentences: int) -> str:
    """Return that many sentences."""
    return " ".join(sentence(rng) for _ in range(sentences))


def epoch(rng: random.Random) -> float:
    """Return a moment as epoch seconds with microseconds."""
    return _START + (rng.getrandbits(60) % (_SPAN * 1_000_000)) / 1_000_000


def moment(rng: random.Random) -> datetime:
    """Return a moment as a naive datetime with microseconds."""
    return datetime.fromtimestamp(epoch(rng), UTC).replace(tzinfo=None)


def stamp(bits: int) -> str:
    """Return a moment as SQLite's CURRENT_TIMESTAMP writes it, chosen by 24 bits."""
    day, rest = bits & 0xFF, bits >> 8
    date = f"2025-{1 + day % 12:02d}-{1 + day // 12 % 28:02d}"
    return f"{date} {rest % 24:02d}:{rest // 24 % 60:02d}:{rest // 1440 % 60:02d}"
