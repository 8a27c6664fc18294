"""The socket side of ``net``: names are resolved, checked and dialled in one place, under one deadline."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from qwen_agent_kit.errors import FetchError
from qwen_agent_kit.net.address import is_public, refuse

__all__ = ["Deadline", "Network", "SYSTEM", "Transport", "Trust"]

Trust = Literal["configured", "found"]
"""``configured``: an address that the user put into code, command line or environment. ``found``: any other."""


class Network(Protocol):
    """Where names and connections come from; the tests bring their own."""

    def resolve(self, host: str, port: int) -> list[str]:
        """The IP addresses of a name, best first; raises ``OSError`` where there are none."""

    def connect(self, ip: str, port: int, timeout: float | None) -> httpcore.NetworkStream:
        """A connection to an IP address."""


class _System:
    """The operating system's resolver and sockets."""

    def resolve(self, host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def connect(self, ip: str, port: int, timeout: float | None) -> httpcore.NetworkStream:
        return httpcore.SyncBackend().connect_tcp(ip, port, timeout=timeout)


SYSTEM: Network = _System()


class Deadline:
    """How long the transfer may still take: ``seconds`` in all, and ``stall`` for each wait.

    Times are of the monotonic clock.
    """

    def __init__(self, seconds: float | None, stall: float = 30.0) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds
        self._stall = stall

    def left(self) -> float:
        """Seconds for the next wait.

        Raises:
            FetchError: ``timeout`` where the time is up.
        """
        if self._end is None:
            return self._stall
        left = self._end - time.monotonic()
        if left <= 0:
            raise FetchError(f"the transfer took longer than {self.seconds:g} s", code="timeout")
        return min(left, self._stall)


class Transport(httpx.BaseTransport):
    """Carries httpx requests over connections that were checked before they were dialled.

    The name is resolved here, every answer is judged, and the very address that passed is dialled, so that a name which
    changes its mind between check and use gains nothing.

    Args:
        trust: ``found`` reaches public addresses only and no proxy; ``configured`` reaches any, through the
            environment's proxies.
        deadline: For all requests together.
        network: Resolver and sockets.
    """

    def __init__(self, trust: Trust, deadline: Deadline, network: Network = SYSTEM) -> None:
        self._backend = _Backend(trust, deadline, network)
        self._proxied = trust == "configured"
        self._pools: dict[str, httpcore.ConnectionPool] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        assert isinstance(request.stream, Iterable), "only the sync half of httpx is used"
        reply = self._pool(url).handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            reply.status, headers=reply.headers, stream=_Body(reply), extensions=dict(reply.extensions)
        )

    def _pool(self, url: httpx.URL) -> httpcore.ConnectionPool:
        proxy = _proxy(url) if self._proxied else ""
        if proxy not in self._pools:
            context = httpx.create_ssl_context() if url.scheme == "https" else None
            kept: dict[str, Any] = {"ssl_context": context, "network_backend": self._backend, "max_connections": 4}
            self._pools[proxy] = httpcore.HTTPProxy(proxy, **kept) if proxy else httpcore.ConnectionPool(**kept)
        return self._pools[proxy]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def _proxy(url: httpx.URL) -> str:
    """The environment's proxy for an address, empty where there is none."""
    proxy = getproxies().get(url.scheme, "")
    return "" if not proxy or proxy_bypass(url.host) else proxy


class _Body(httpx.SyncByteStream):
    """The reply's bytes as they come."""

    def __init__(self, reply: httpcore.Response) -> None:
        self._reply = reply

    def __iter__(self) -> Iterator[bytes]:
        yield from self._reply.iter_stream()

    def close(self) -> None:
        self._reply.close()


class _Backend(httpcore.NetworkBackend):
    """Resolves, judges and dials."""

    def __init__(self, trust: Trust, deadline: Deadline, network: Network) -> None:
        self._trust = trust
        self._deadline = deadline
        self._network = network

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del timeout, local_address, socket_options  # the deadline rules
        failure: Exception | None = None
        for ip in self._allowed(host, port):
            try:
                return _Stream(self._network.connect(ip, port, self._deadline.left()), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
                failure = error
        raise httpcore.ConnectError(f"no address of {host!r} answers") from failure

    def _allowed(self, host: str, port: int) -> list[str]:
        """The host's addresses; one that is not public refuses them all, for which is dialled must not be chance."""
        try:
            answers = [str(ipaddress.ip_address(host))]
        except ValueError:
            answers = self._answers(host, port)
        if self._trust == "found":
            for answer in answers:
                if not _judged(answer):
                    refuse(
                        f"the address of `{host[:80]}` is {answer}, which is not public; allowed in what a message or "
                        "a tool brings: public addresses",
                        "fetch it yourself and pass the bytes",
                    )
        return answers

    def _answers(self, host: str, port: int) -> list[str]:
        """Resolved in a thread, since a resolver knows no deadline."""
        told: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                told.put(self._network.resolve(host, port))
            except Exception as error:  # noqa: BLE001  # a resolver may raise anything; it is reported as one failure
                told.put(error)

        threading.Thread(target=ask, name="qak-resolve", daemon=True).start()
        try:
            answers = told.get(timeout=self._deadline.left())
        except queue.Empty:
            raise httpcore.ConnectTimeout(f"no answer for the name {host!r}") from None
        if isinstance(answers, Exception) or not answers:
            raise httpcore.ConnectError(f"the name {host!r} has no address")
        return answers


def _judged(answer: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(answer))
    except ValueError:
        return False


class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends with the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  # the deadline
        return self._inner.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002  # the deadline
        self._inner.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  # the deadline
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _Stream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
