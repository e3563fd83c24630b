"""Settings from the environment, and the rule that no password is ever shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from iceburg.errors import UsageError

MASK = "***"

_ACCEPTED = {
    "DATABASE_URL": "a connection string such as postgresql://user@host:5432/database",
    "ICEBURG_HOME": "an absolute path of a directory",
    "ICEBURG_POOL_MIN": "a whole number from 0 to 1000, not above ICEBURG_POOL_MAX",
    "ICEBURG_POOL_MAX": "a whole number from 1 to 1000",
    "ICEBURG_CONNECT_TIMEOUT": "a number of seconds from 1 to 3600",
    "ICEBURG_DATA_DIR": "the directory in which the application keeps its files",
    "ICEBURG_USE_POSTGRES": "true, 1, yes, on, false, 0, no or off",
    "ICEBURG_DUAL_WRITE": "true, 1, yes, on, false, 0, no or off",
    "ICEBURG_FLAG_FILE": "the path of a file that holds true or false",
    "ICEBURG_SHADOW_READS": "a share from 0 to 1, such as 0.01",
    "ICEBURG_POSTGRES_TIMEOUT": "a number of seconds from 0.1 to 3600",
    "ICEBURG_SCHEMA_NAME": "the name of a schema, as given to `--schema`",
}
# Every option of libpq whose value is a secret.
_SECRETS = "password|sslpassword|scram_client_key|scram_server_key|oauth_client_secret"
_SECRET_IN_KEYWORDS = re.compile(rf"(\b(?:{_SECRETS})\s*=\s*)(?:'(?:[^'\\]|\\.)*(?:'|\Z)|(?:\\.|[^\s\\])*)", re.DOTALL)
_SECRET_IN_QUERY = re.compile(rf"([?&](?:{_SECRETS})=)[^&]*")
_SCHEME = re.compile(r"\A\s*[A-Za-z][A-Za-z0-9+.-]*://")


_FLAG_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def parse_flag(text: str) -> bool:
    """Read a flag: true, 1, yes, on, or false, 0, no, off, in any case.

    Raises
    ------
    ValueError
        It is another word.
    """
    try:
        return _FLAG_WORDS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text.strip()[:40]!r} is not a flag: use true or false") from None


def default_home() -> Path:
    """Return where our own data lives by default: /var/lib/iceburg as root, else in the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/iceburg")
    return platformdirs.user_data_path("iceburg", appauthor=False)


class Settings(BaseSettings):
    """What the environment says. An empty variable counts as unset.

    Attributes
    ----------
    database_url
        DATABASE_URL: the PostgreSQL to use when a command has no ``--dsn``; None means the embedded server.
    home
        ICEBURG_HOME: where the embedded server and its data live.
    pool_min, pool_max
        ICEBURG_POOL_MIN, ICEBURG_POOL_MAX: connections that a pool keeps open, and may open.
    connect_timeout
        ICEBURG_CONNECT_TIMEOUT: seconds to wait for a server to answer.
    data_dir
        ICEBURG_DATA_DIR: where the application keeps its files; ``data`` in the current directory by default.
    use_postgres
        ICEBURG_USE_POSTGRES: the flag; a flag file, where there is one, has the last word.
    dual_write
        ICEBURG_DUAL_WRITE: whether writes go to the embedded stores too while the flag is on.
    flag_file
        ICEBURG_FLAG_FILE: a file whose change running processes take up within a second.
    shadow_reads
        ICEBURG_SHADOW_READS: the share of reads that are compared with the other side.
    postgres_timeout
        ICEBURG_POSTGRES_TIMEOUT: seconds that a call may wait for PostgreSQL while SQLite can answer instead.
    schema_name
        ICEBURG_SCHEMA_NAME: what was given to `migrate --schema`; None for ``public``.
    """

    model_config = SettingsConfigDict(
        env_prefix="ICEBURG_", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr | None = Field(default=None, validation_alias=AliasChoices("DATABASE_URL", "database_url"))
    home: Path = Field(default_factory=default_home)
    pool_min: int = Field(default=1, ge=0, le=1000)
    pool_max: int = Field(default=10, ge=1, le=1000)
    connect_timeout: float = Field(default=10.0, ge=1, le=3600)
    data_dir: Path = Path("data")
    use_postgres: bool = False
    dual_write: bool = True
    flag_file: Path | None = None
    shadow_reads: float = Field(default=0.0, ge=0, le=1)
    postgres_timeout: float = Field(default=2.0, ge=0.1, le=3600)
    schema_name: str | None = None

    @field_validator("use_postgres", "dual_write", mode="before")
    @classmethod
    def _flag_is_a_word(cls, value: object) -> object:
        return parse_flag(value) if isinstance(value, str) else value

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, home: Path) -> Path:
        home = home.expanduser()
        if not home.is_absolute():
            raise ValueError("not absolute")
        return home

    @model_validator(mode="after")
    def _pool_is_ordered(self) -> Settings:
        if self.pool_min > self.pool_max:
            raise ValueError("ICEBURG_POOL_MIN")
        return self


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises
    ------
    UsageError
        A variable has a value that cannot be used; the message names it and what is accepted, never its value.
    """
    try:
        return Settings()
    except (ValidationError, RuntimeError) as error:
        # RuntimeError: a `~` in ICEBURG_HOME whose user is unknown.
        names = _variables(error)
    accepted = "\n  ".join(f"{name} accepts {_ACCEPTED[name]}." for name in names)
    raise UsageError(f"{' and '.join(names)} cannot be used as set.", where="environment", hint=accepted)


def _variables(error: ValidationError | RuntimeError) -> list[str]:
    if not isinstance(error, ValidationError):
        return ["ICEBURG_HOME"]
    # An error without a place is the one that concerns two variables.
    fields = {str(found["loc"][0]) if found["loc"] else "pool_min" for found in error.errors()}
    return sorted(name for name in _ACCEPTED if name.lower().removeprefix("iceburg_") in {f.lower() for f in fields})


def mask_dsn(dsn: str) -> str:
    """Return a connection string with every secret in it replaced by ``***``, in the form in which it was given.

    Where the string is not what libpq should be given, more is hidden rather than less: in a URL everything between the
    first colon and the last ``@``.
    """
    if not _SCHEME.match(dsn):
        return _SECRET_IN_KEYWORDS.sub(rf"\g<1>{MASK}", dsn)
    start = dsn.index("://") + len("://")
    end = dsn.rfind("@", start)
    if _is_clear(dsn):
        # libpq takes for user and password what is before the first `@`, unless there is a `/` before it.
        credentials = re.match(r"[^/@]*@", dsn[start:])
        end = start + credentials.end() - 1 if credentials else -1
    colon = dsn.find(":", start, end) if end != -1 else -1
    if colon != -1:
        dsn = f"{dsn[: colon + 1]}{MASK}{dsn[end:]}"
    return _SECRET_IN_QUERY.sub(rf"\g<1>{MASK}", dsn)


def _is_clear(dsn: str) -> bool:
    # libpq parses a URL whose password has a bare `/` or `@`, but takes a piece of the password for the port or host.
    try:
        options = conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError):
        return False
    return "@" not in f"{options.get('host')}{options.get('dbname')}" and bool(
        re.fullmatch(r"[0-9,]*", str(options.get("port", "")))
    )
