"""A socket between a client and PostgreSQL that can be cut, as a network or a server that dies cuts it."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo


class Proxy:
    """Listens on a Unix socket in a directory and passes everything on to a server.

    Parameters
    ----------
    dsn
        Of the server.
    directory
        Where to listen; its path must be short.
    """

    def __init__(self, dsn: str, directory: Path) -> None:
        with psycopg.connect(dsn) as connection:
            self._server = connection.info.host, connection.info.port
        self.dsn = make_conninfo(dsn, host=str(directory), port=5432)
        self._path = directory / ".s.PGSQL.5432"
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_cut = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut every connection, and every later one at once."""
        with self._lock:
            self._is_cut = True
            for end in self._open:
                with contextlib.suppress(OSError):  # it has ended by itself
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let new connections through again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Cut, and stop listening."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_cut:
                    client.close()
                    continue
                server = _connected(*self._server)
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    thread = threading.Thread(target=_pass_on, args=(source, sink), daemon=True)
                    self._threads.append(thread)
                    thread.start()


def _connected(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    found = socket.socket(socket.AF_UNIX)
    found.connect(f"{host}/.s.PGSQL.{port}")
    return found


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
