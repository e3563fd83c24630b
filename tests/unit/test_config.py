from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from iceburg.config import Settings, default_home, load_settings, mask_dsn
from iceburg.errors import UsageError

VARIABLES = ("DATABASE_URL", "ICEBURG_HOME", "ICEBURG_POOL_MIN", "ICEBURG_POOL_MAX", "ICEBURG_CONNECT_TIMEOUT")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_defaults() -> None:
    settings = load_settings()
    assert settings.database_url is None
    assert settings.home == default_home()
    assert (settings.pool_min, settings.pool_max, settings.connect_timeout) == (1, 10, 10.0)


def test_default_home_is_in_the_users_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_home() == tmp_path / "iceburg"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_home() == Path("/var/lib/iceburg")


def test_another_programs_variables_are_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POOL_MIN", "7")
    assert load_settings().home != tmp_path
    assert load_settings().pool_min == 1


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@h/db")
    monkeypatch.setenv("ICEBURG_HOME", str(tmp_path))
    monkeypatch.setenv("ICEBURG_POOL_MAX", "3")
    settings = load_settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:s3cret@h/db"
    assert settings.home == tmp_path
    assert settings.pool_max == 3
    assert "s3cret" not in repr(settings) + str(settings)


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert load_settings() == Settings()
    assert load_settings().database_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ICEBURG_HOME", "relative/path"),
        ("ICEBURG_HOME", "~no-such-user-here/x"),
        ("ICEBURG_POOL_MIN", "many"),
        ("ICEBURG_POOL_MIN", "-1"),
        ("ICEBURG_POOL_MIN", "11"),
        ("ICEBURG_POOL_MAX", "0"),
        ("ICEBURG_CONNECT_TIMEOUT", "0"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert caught.value.what.startswith(name)
    assert f"{name} accepts" in caught.value.hint


@pytest.mark.parametrize(
    ("dsn", "masked"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgres://u:p:q@h:5/db?a=b", "postgres://u:***@h:5/db?a=b"),
        ("postgresql://u:p@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        ("postgresql://u@h/db?password=p&a=b", "postgresql://u@h/db?password=***&a=b"),
        ("postgresql://h/db?sslpassword=p", "postgresql://h/db?sslpassword=***"),
        ("postgresql://u@h/db?application_name=a@b:c", "postgresql://u@h/db?application_name=a@b:c"),
        ("postgresql://u@/db?host=/x&passfile=/y", "postgresql://u@/db?host=/x&passfile=/y"),
        ("postgresql://u@[::1]:5432/db", "postgresql://u@[::1]:5432/db"),
        # Not escaped: libpq would look for the host in the password.
        ("postgresql://u:a/b@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:a@b@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:a?b@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:a#b@h/db", "postgresql://u:***@h/db"),
        ("postgresql+psycopg://u:p@h/db", "postgresql+psycopg://u:***@h/db"),
        ("host=h password=p user=u", "host=h password=*** user=u"),
        ("host=h password = 'p \\' q' user=u", "host=h password = *** user=u"),
        ("host=h password=p\\ q user=u", "host=h password=*** user=u"),
        ("password='not finished", "password=***"),
        ("host=h user=u", "host=h user=u"),
    ],
)
def test_masking(dsn: str, masked: str) -> None:
    assert mask_dsn(dsn) == masked


@given(password=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=4))
def test_no_password_shows_in_keyword_form(password: str) -> None:
    dsn = make_conninfo(host="h", user="u", password=password, dbname="d")
    masked = mask_dsn(dsn)
    assert conninfo_to_dict(masked) == {"host": "h", "user": "u", "password": "***", "dbname": "d"}


@given(password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=12))
def test_no_password_shows_in_url_form_however_badly_it_is_written(password: str) -> None:
    assert password not in mask_dsn(f"postgresql://u:{password}@h.example/d").replace("***@h.example/d", "")


def test_a_masked_url_still_parses() -> None:
    assert conninfo_to_dict(mask_dsn("postgresql://u:p%20q@h:6000/d?sslmode=require"))["password"] == "***"
    with pytest.raises(psycopg.ProgrammingError):
        conninfo_to_dict(mask_dsn("nonsense"))
