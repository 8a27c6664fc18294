"""Real HTTP over loopback, and a network whose names lead wherever a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore

PUBLIC = "93.184.216.34"
"""A public address, which these tests lead to loopback."""


def words(text: str) -> list[str]:
    """A list, written with spaces between."""
    return text.split()


class Exchange(BaseHTTPRequestHandler):
    """One request; a route gets it and answers with ``give`` or with raw bytes."""

    protocol_version = "HTTP/1.1"
    routes: Mapping[str, Callable[[Exchange], None]]
    asked: list[tuple[str, str, dict[str, str]]]

    def answer(self) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        route = self.routes.get(path) or self.routes.get("*")
        if route is None:
            self.give(404)
        else:
            route(self)

    do_GET = do_HEAD = do_POST = answer

    def give(self, status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """A whole answer."""
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.write(body)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers only."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> bool:
        """Send; False where the client has gone."""
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return False
        return True

    def cut(self) -> None:
        """Close the connection now."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    connections = 0

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no news."""


class Site:
    """A running server: its address, what it was asked, how many connections it saw."""

    def __init__(self, routes: Mapping[str, Callable[[Exchange], None]]) -> None:
        handler = type("Handler", (Exchange,), {"routes": routes, "asked": []})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.asked: list[tuple[str, str, dict[str, str]]] = handler.asked
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        return self._server.connections

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(routes: Mapping[str, Callable[[Exchange], None]]) -> Iterator[Site]:
    """A site on loopback while the block runs."""
    site = Site(routes)
    try:
        yield site
    finally:
        site.close()


class Web:
    """A ``net.Network``: names and public addresses lead to a site on loopback; what was dialled is kept.

    Args:
        site: Where every connection ends.
        names: Answers by name; a list of lists gives another answer each time.
    """

    def __init__(self, site: Site | None, names: Mapping[str, list[Any]] | None = None) -> None:
        self._site = site
        self._names = {name: list(answers) for name, answers in (names or {}).items()}
        self.resolved: list[str] = []
        self.dialled: list[str] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        answers = self._names.get(host)
        if answers is None:
            raise socket.gaierror(f"no such name: {host}")
        if answers and isinstance(answers[0], list):
            return list(answers.pop(0) if len(answers) > 1 else answers[0])
        return list(answers)

    def connect(self, ip: str, port: int, timeout: float | None) -> httpcore.NetworkStream:
        self.dialled.append(ip)
        assert self._site is not None, f"{ip} was dialled"
        return httpcore.SyncBackend().connect_tcp("127.0.0.1", self._site.port, timeout=timeout)
