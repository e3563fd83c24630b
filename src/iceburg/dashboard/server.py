"""The web server: the page, its parts as JSON and as a stream of events, figures for Prometheus."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Final, TypeVar

import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from iceburg.dashboard.board import PARTS, Board, to_json
from iceburg.dashboard.exposition import CONTENT_TYPE, exposition
from iceburg.dashboard.guard import Guard, is_loopback
from iceburg.dashboard.latency import STEPS, Latency, read_latency
from iceburg.dashboard.observer import Observer
from iceburg.dashboard.quarantine import read_quarantine
from iceburg.dashboard.rounds import open_connection
from iceburg.database.connection import Target
from iceburg.database.schema import SchemaNames
from iceburg.errors import IceburgError, UsageError

T = TypeVar("T")
_FILES: Final = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/panels.js": ("panels.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLL: Final = 0.2
_ASKED_AT_ONCE: Final = 2
_METRICS_MINUTES: Final = 15
# How long an answer may still be under way at the end.
_ENDING: Final = 3
_LONGEST_PAGE: Final = 10**9


class Dashboard:
    """The application.

    Parameters
    ----------
    target, names
        Asked for what is not on the board.
    board, observer
        What is shown.
    """

    def __init__(self, target: Target, names: SchemaNames, board: Board, observer: Observer) -> None:
        self._target, self._names, self._board, self._observer = target, names, board, observer
        self._asking = threading.BoundedSemaphore(_ASKED_AT_ONCE)
        self._ending = False
        self.app = Starlette(
            routes=[
                *(Route(path, self._file) for path in _FILES),
                Route("/healthz", self._health),
                Route("/metrics", self._metrics),
                Route("/api/events", self._events),
                Route("/api/history", self._history),
                Route("/api/latency", self._latency),
                Route("/api/quarantine", self._quarantine),
                Route("/api/{part}", self._part),
            ],
            middleware=[Middleware(Guard)],
        )
        folder = resources.files("iceburg.dashboard") / "static"
        self._files = {path: (folder / name).read_bytes() for path, (name, _) in _FILES.items()}

    def end(self) -> None:
        """Have the streams of events end."""
        self._ending = True

    async def _file(self, request: Request) -> Response:
        path = request.url.path
        return Response(self._files[path], media_type=f"{_FILES[path][1]}; charset=utf-8")

    async def _health(self, _request: Request) -> Response:
        now = self._board.find("now")
        reachable = now is not None and now.record.reachable
        well = self._observer.is_alive
        found = {"status": "ok" if well else "stuck", "postgres": "reachable" if reachable else "unreachable"}
        return _json(found, 200 if well else 503)

    async def _metrics(self, _request: Request) -> Response:
        try:
            latency: Latency | None = await self._ask(lambda c: read_latency(c, self._names, _METRICS_MINUTES))
        except (IceburgError, psycopg.Error):
            latency = None  # iceburg_target_up says so
        return Response(exposition(self._board, latency), headers={"Content-Type": CONTENT_TYPE})

    async def _part(self, request: Request) -> Response:
        part = request.path_params["part"]
        if part not in PARTS:
            return _json({"error": f"There is no part {part!r}.", "hint": f"There are {', '.join(PARTS)}."}, 404)
        posted = self._board.find(part)
        if posted is None:
            return _json({"error": "Nothing of that was found yet.", "hint": ""}, 503)
        return Response(posted.raw, media_type="application/json")

    async def _history(self, _request: Request) -> Response:
        return _json(self._observer.history())

    async def _latency(self, request: Request) -> Response:
        minutes = _number(request, "minutes", 60)
        if minutes not in STEPS:
            hint = f"It may be {', '.join(map(str, STEPS))}."
            return _json({"error": "minutes is none of the windows.", "hint": hint}, 400)
        return await self._answer(lambda connection: read_latency(connection, self._names, minutes))

    async def _quarantine(self, request: Request) -> Response:
        dataset = request.query_params.get("dataset") or None
        page = _number(request, "page", 1)
        if page is None or not 1 <= page <= _LONGEST_PAGE or "\0" in (dataset or ""):
            return _json({"error": "page is a number from 1; dataset is a name.", "hint": ""}, 400)
        return await self._answer(lambda connection: read_quarantine(connection, self._names, dataset, page))

    async def _answer(self, question: Callable[[psycopg.Connection], object]) -> Response:
        try:
            return _json(await self._ask(question))
        except IceburgError as error:
            return _json({"error": error.what, "hint": error.hint}, 503)
        except psycopg.Error as error:
            what = error.diag.message_primary or str(error).strip()
            return _json({"error": f"PostgreSQL: {what}", "hint": ""}, 503)

    async def _ask(self, question: Callable[[psycopg.Connection], T]) -> T:
        return await run_in_threadpool(self._ask_now, question)

    def _ask_now(self, question: Callable[[psycopg.Connection], T]) -> T:
        with self._asking, open_connection(self._target, self._names) as connection:
            return question(connection)

    async def _events(self, request: Request) -> Response:
        # Written by hand: a stream in one direction is these few lines.
        return StreamingResponse(self._stream(request), media_type="text/event-stream")

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        seen = dict.fromkeys(PARTS, 0)
        while not self._ending and not await request.is_disconnected():
            for part in PARTS:
                posted = self._board.find(part)
                if posted is not None and posted.version != seen[part]:
                    seen[part] = posted.version
                    yield b"event: " + part.encode() + b"\ndata: " + posted.raw + b"\n\n"
            await asyncio.sleep(_POLL)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Parameters
    ----------
    host
        An address or name of this machine's loopback.
    port
        0 for any that is free.

    Raises
    ------
    UsageError
        The host is none of them, or the port is in use.
    """
    if not is_loopback(host):
        raise UsageError(
            f"{host} is not this machine alone, and the page asks nobody who they are.",
            where="--host",
            hint="Leave it at 127.0.0.1; from elsewhere, use a tunnel such as `ssh -L 8765:127.0.0.1:8765 machine`.",
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        hint = "Name another with --port; 0 takes one that is free."
        raise UsageError(f"cannot listen there: {error.strerror}", where=f"{host}:{port}", hint=hint) from error
    return found


def serve(dashboard: Dashboard, listening: socket.socket, stopping: Callable[[], bool]) -> None:
    """Serve until it is time to stop; the socket is closed then."""
    config = uvicorn.Config(
        dashboard.app,
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_ENDING,
    )
    server = uvicorn.Server(config)
    # Signals are the command's, and so the main thread's.
    thread = threading.Thread(target=server.run, args=([listening],), name="iceburg-dashboard")
    thread.start()
    while thread.is_alive() and not stopping():
        thread.join(_POLL)
    dashboard.end()
    server.should_exit = True
    thread.join()


def _json(record: object, status: int = 200) -> Response:
    return Response(to_json(record), status, media_type="application/json")


def _number(request: Request, name: str, default: int) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
