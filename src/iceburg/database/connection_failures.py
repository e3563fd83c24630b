"""What a failed connection means for the user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from iceburg.config import mask_dsn
from iceburg.database.preflight import quote_name
from iceburg.errors import TargetError


@dataclass(frozen=True, slots=True)
class _Cause:
    pattern: str
    what: str
    hint: str


_FULL: Final = r"too many (clients|connections)|connection slots"
# What libpq and the server say, the particular before the general. Placeholders are filled from the connection string.
_CAUSES = (
    _Cause(
        r"could not translate host name|Name or service not known|nodename nor servname",
        "The host {host} is not known.",
        "Check the host's name in the connection string.",
    ),
    _Cause(
        r"no pg_hba\.conf entry.*(no encryption|SSL off)",
        "The server does not accept user {user} on database {database} from here without encryption.",
        "Add sslmode=require to the connection string. If that is refused too, the server's pg_hba.conf needs an entry "
        "for this host, user and database.",
    ),
    _Cause(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "The server does not accept user {user} on database {database} from this host.",
        "Ask its administrator for an entry in pg_hba.conf for this host, user and database.",
    ),
    _Cause(
        r"server does not support SSL",
        "The connection string demands SSL, and the server does not offer it.",
        "Remove sslmode from the connection string, or turn on ssl in the server.",
    ),
    _Cause(
        r"certificate|SSL error",
        "The SSL connection to {host} failed: {reason}",
        "Check sslmode, sslrootcert and sslcert in the connection string.",
    ),
    _Cause(
        r"no password supplied",
        "The server wants a password for user {user}, and none was given.",
        "Put it into the connection string, the variable PGPASSWORD or the file ~/.pgpass.",
    ),
    _Cause(
        r"(password|SCRAM|Peer|Ident|LDAP|PAM|GSSAPI|RADIUS) authentication failed",
        "The server refuses user {user}: wrong password, or no such role.",
        "Check user and password in the connection string.",
    ),
    _Cause(
        r'database ".*" does not exist',
        "The database {database} does not exist on the server.",
        "Create it with `createdb --encoding=UTF8 --template=template0 {database}`, or name another one.",
    ),
    _Cause(
        r'role ".*" does not exist',
        "The role {user} does not exist on the server.",
        "Name an existing user in the connection string, or create it with `createuser --pwprompt {user}`.",
    ),
    _Cause(
        r"is not permitted to log in",
        "The role {user} may not log in.",
        "Ask an administrator to run: ALTER ROLE {user_sql} LOGIN;",
    ),
    _Cause(
        r"permission denied for database",
        "The role {user} may not connect to the database {database}.",
        "Ask an administrator to run: GRANT CONNECT ON DATABASE {database_sql} TO {user_sql};",
    ),
    _Cause(
        _FULL,
        "The server has no free connection.",
        "Close other connections, lower --jobs and ICEBURG_POOL_MAX, or raise max_connections in the server.",
    ),
    _Cause(
        r"system is (starting up|shutting down|in recovery)|not yet accepting connections",
        "The server is starting or stopping and takes no connections yet.",
        "Wait until it is ready, and run the command again: it goes on from where it was.",
    ),
    _Cause(
        r"invalid response to SSL|expected authentication request|server closed the connection unexpectedly",
        "What answers at {host} port {port} does not behave like PostgreSQL.",
        "Check host and port in the connection string.",
    ),
    _Cause(
        r"refused|No such file or directory|No route|unreachable|timeout|timed out|Permission denied|could not connect",
        "No PostgreSQL can be reached at {host} port {port}: {reason}",
        "Check that the server runs, that host and port are right, and that no firewall is between.",
    ),
)


def explain_failure(text: str, dsn: str) -> TargetError:
    """Turn what libpq says of a failed connection into what the user can do about it.

    Parameters
    ----------
    text
        The message of libpq, which includes the server's.
    dsn
        The connection string that was used.
    """
    defaults = {item.keyword.decode(): (item.val or b"").decode("utf-8", "replace") for item in Conninfo.get_defaults()}
    options = {**defaults, **{name: str(value) for name, value in conninfo_to_dict(dsn).items() if value}}
    user = options.get("user") or "(nobody)"
    database = options.get("dbname") or user
    facts = {
        "host": options.get("host") or options.get("hostaddr") or "the local socket",
        "port": options.get("port", ""),
        "user": user,
        "user_sql": quote_name(user),
        "database": database,
        "database_sql": quote_name(database),
        "reason": _reason(text),
    }
    for cause in _CAUSES:
        if re.search(cause.pattern, text, re.IGNORECASE | re.DOTALL):
            return TargetError(cause.what.format(**facts), where=mask_dsn(dsn), hint=cause.hint.format(**facts))
    return TargetError(
        f"The connection failed: {text.strip()}", where=mask_dsn(dsn), hint="Check the connection string."
    )


def has_no_room(text: str) -> bool:
    """Whether what is said of a failed connection is that there are too many: of these, one may soon be free."""
    return re.search(_FULL, text, re.IGNORECASE) is not None


def _reason(text: str) -> str:
    # `connection failed: connection to server at "h", port 5432 failed: Connection refused`, then advice by libpq
    reasons = re.findall(r"^.*(?:failed|error): (.+)$", text, re.MULTILINE)
    return str(reasons[-1]) if reasons else text.strip()
