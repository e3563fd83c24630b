"""What every request has to pass, and every answer carries.

The page listens on loopback, where any page that is open in a browser can reach it: a name that leads there (DNS
rebinding) is refused by the Host header, other origins can read nothing, and nothing can be changed.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether a host, as an address or by the name localhost, is this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_own_host(header: str | None) -> bool:
    """Whether a Host header names this machine; any port, for a tunnel has one of its own."""
    found = _HOST.fullmatch(header or "")
    return found is not None and is_loopback(found[1])


class Guard:
    """Refuses what is not asked of this machine, and what would change something."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if not is_own_host(Headers(scope=scope).get("host")):
            refusal = PlainTextResponse("This page answers to localhost and loopback addresses only.\n", 421)
            await refusal(scope, receive, send_guarded)
        elif scope["method"] not in ("GET", "HEAD"):
            refusal = PlainTextResponse("Nothing can be changed here.\n", 405, {"Allow": "GET, HEAD"})
            await refusal(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)
