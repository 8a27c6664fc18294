"""One request after the other: redirects judged hop by hop, bodies bounded while they come."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

import httpcore
import httpx

from qwen_agent_kit.errors import FetchError
from qwen_agent_kit.net.address import Address, canonical, is_public, joined, refuse
from qwen_agent_kit.net.transport import SYSTEM, Deadline, Network, Transport, Trust

__all__ = ["Fetched", "MAX_REDIRECTS", "Reply", "SECONDS", "check_url", "fetch", "open_url"]

SECONDS = 15.0
"""What a whole transfer may take unless the caller says otherwise."""

MAX_REDIRECTS = 10

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SECRET = frozenset({"authorization", "cookie", "proxy-authorization"})
_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,
)


@dataclass(frozen=True)
class Reply:
    """An answer whose body has not been read.

    Args:
        url: Where it came from, after redirects.
        status: The HTTP status.
        headers: By name in lower case.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    _response: httpx.Response = field(repr=False)

    @property
    def length(self) -> int | None:
        """What ``Content-Length`` says."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def chunks(self) -> Iterator[bytes]:
        """The body as it travels, codings not undone.

        Raises:
            FetchError: Where the transfer breaks, is cut short or takes too long.
        """
        with _failures(self.url):
            yield from self._response.iter_raw()

    def read(self, limit: int) -> bytes:
        """The body, gzip undone.

        Raises:
            FetchError: ``too_large`` past ``limit`` bytes, before or after decompression; ``unsupported_encoding``.
        """
        if (length := self.length) is not None and length > limit:
            raise _too_large(limit)
        decode = _decoder(self.headers.get("content-encoding", ""), limit)
        parts, total = [], 0
        for chunk in self.chunks():
            part = decode(chunk)
            total += len(part)
            if total > limit:
                raise _too_large(limit)
            parts.append(part)
        decode.finish()
        return b"".join(parts)


@dataclass(frozen=True)
class Fetched:
    """A body, where it came from after redirects, and what the server calls it (lower case, without parameters)."""

    data: bytes = field(repr=False)
    url: str
    content_type: str


def check_url(url: str, trust: Trust = "found") -> Address:
    """The canonical form of an address that may be followed, as far as can be told without resolving its name.

    Raises:
        UsageError: ``blocked_url`` where it may not.
    """
    address = canonical(url)
    if trust == "configured":
        return address
    local = address.host == "localhost" or address.host.endswith(".localhost")
    if local or (address.ip is not None and not is_public(address.ip)):
        refuse(
            f"the address {url[:80]!r} leads to `{address.host}`, which is not public; allowed in what a message or a "
            "tool brings: public addresses",
            "fetch it yourself and pass the bytes",
        )
    return address


def fetch(
    url: str,
    *,
    trust: Trust = "found",
    limit: int,
    seconds: float | None = SECONDS,
    headers: Mapping[str, str] | None = None,
    network: Network = SYSTEM,
) -> Fetched:
    """The bytes behind an address.

    Args:
        url: http or https.
        trust: See the module.
        limit: The most bytes, after decompression too.
        seconds: For all of it: names, redirects and body.
        headers: Sent to the first host; credentials among them to no other.
        network: Resolver and sockets.

    Raises:
        UsageError: ``blocked_url`` where the address, or one that it leads to, may not be followed.
        FetchError: ``http_status``, ``too_large``, ``timeout``, ``too_many_redirects``, ``unsupported_encoding`` or
            ``fetch`` where the transfer fails.
    """
    with open_url(url, trust=trust, seconds=seconds, headers=headers, network=network) as reply:
        if not 200 <= reply.status < 300:
            raise FetchError(f"`{_shown(reply.url)}` answers with status {reply.status}", code="http_status")
        data = reply.read(limit)
    return Fetched(data, reply.url, reply.headers.get("content-type", "").partition(";")[0].strip().lower())


@contextmanager
def open_url(
    url: str,
    *,
    trust: Trust,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    seconds: float | None = SECONDS,
    stall: float = 30.0,
    redirects: int = MAX_REDIRECTS,
    network: Network = SYSTEM,
) -> Iterator[Reply]:
    """Ask, follow redirects, and hand out the answer before its body is read.

    Args:
        url: http or https.
        trust: See the module.
        method: ``GET`` or ``HEAD``.
        headers: Sent to the first host; credentials among them to no other.
        seconds: For all of it; None for no limit but ``stall``.
        stall: The longest wait for the next byte, in seconds.
        redirects: How many are followed; with 0 a redirect is the answer.
        network: Resolver and sockets.

    Raises:
        UsageError: ``blocked_url``.
        FetchError: As ``fetch``, but for statuses, which are the caller's.
    """
    address = check_url(url, trust)
    sent = _headers(headers, address, trust)
    # Past httpx's client, which would judge redirects, cookies and proxies by its own rules.
    with Transport(trust, Deadline(seconds, stall), network) as transport:
        for _ in range(redirects + 1):
            with _failures(address.url):
                response = transport.handle_request(httpx.Request(method, address.url, headers=sent))
            try:
                target = response.headers.get("location")
                if redirects == 0 or target is None or response.status_code not in _REDIRECTS:
                    yield Reply(address.url, response.status_code, _lower(response), response)
                    return
            finally:
                response.close()
            following = check_url(joined(address, target), trust)
            if following.origin != address.origin:
                sent = {name: value for name, value in sent.items() if name not in _SECRET}
            address = following
    raise FetchError(f"`{_shown(url)}` redirects more than {redirects} times", code="too_many_redirects")


def _headers(given: Mapping[str, str] | None, address: Address, trust: Trust) -> dict[str, str]:
    sent = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "qwen-agent-kit"}
    sent |= {name.lower(): value for name, value in (given or {}).items()}
    if trust == "configured" and address.userinfo and "authorization" not in sent:
        user, _, password = address.userinfo.partition(":")
        pair = f"{unquote(user)}:{unquote(password)}".encode()
        sent["authorization"] = f"Basic {base64.b64encode(pair).decode('ascii')}"
    return sent


def _lower(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _shown(url: str) -> str:
    """An address for a message: no query, which may carry a signature, and no credentials."""
    return canonical(url).url.partition("?")[0][:200]


@contextmanager
def _failures(url: str) -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, httpx.TimeoutException) as error:
        raise FetchError(f"`{_shown(url)}` does not answer in time", code="timeout") from error
    except _FAILURES as error:
        raise FetchError(
            f"the transfer from `{_shown(url)}` failed: {str(error)[:200] or type(error).__name__}",
            hint="try again, or check the address and the connection",
        ) from error


def _too_large(limit: int) -> FetchError:
    return FetchError(f"the answer has more than {limit} bytes, which is the most that is allowed", code="too_large")


class _Plain:
    """The coding ``identity``."""

    def __call__(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> None:
        """Nothing is left over."""


class _Gzip:
    """Undoes gzip, never making more than one byte past the limit."""

    def __init__(self, limit: int) -> None:
        self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._left = limit + 1

    def __call__(self, chunk: bytes) -> bytes:
        try:
            made = self._stream.decompress(chunk, max(1, self._left))
        except zlib.error as error:
            raise _no_gzip() from error
        self._left -= len(made)
        return made

    def finish(self) -> None:
        """Insist that the end was seen."""
        if not self._stream.eof:
            raise _no_gzip()


def _no_gzip() -> FetchError:
    return FetchError("the answer is not the whole gzip that its header says", code="unsupported_encoding")


def _decoder(coding: str, limit: int) -> _Plain | _Gzip:
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return _Plain()
    if coding in ("gzip", "x-gzip"):
        return _Gzip(limit)
    raise FetchError(f"the answer has the coding {coding[:40]!r}; allowed: identity, gzip", code="unsupported_encoding")
