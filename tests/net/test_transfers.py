"""Bodies that do not end, lie about themselves or hide what they are: every transfer stops at its bound."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from loopback import PUBLIC, Exchange, Web, serving

from qwen_agent_kit import Image
from qwen_agent_kit.errors import FetchError, MediaError, UsageError
from qwen_agent_kit.media import read_bytes
from qwen_agent_kit.net import SECONDS, fetch, open_url

LIMIT = 100_000


def endless(exchange: Exchange) -> None:
    exchange.head(200, {"Connection": "close"})
    while exchange.write(bytes(4096)):
        pass


def endless_chunks(exchange: Exchange) -> None:
    exchange.head(200, {"Transfer-Encoding": "chunked"})
    while exchange.write(b"1000\r\n" + bytes(4096) + b"\r\n"):
        pass


def says_too_much(exchange: Exchange) -> None:
    exchange.head(200, {"Content-Length": str(10**15)})
    exchange.write(bytes(100))


def says_more_than_it_gives(exchange: Exchange) -> None:
    exchange.head(200, {"Content-Length": "1000"})
    exchange.write(bytes(10))
    exchange.cut()


def bomb(exchange: Exchange) -> None:
    stream = zlib.compressobj(9, wbits=31)
    zeros = bytes(2**20)
    body = b"".join(stream.compress(zeros) for _ in range(64)) + stream.flush()
    exchange.give(200, body, {"Content-Encoding": "gzip"})


def cut_gzip(exchange: Exchange) -> None:
    exchange.give(200, gzip.compress(b"x" * 1000)[:-9], {"Content-Encoding": "gzip"})


def no_gzip(exchange: Exchange) -> None:
    exchange.give(200, b"plain", {"Content-Encoding": "gzip"})


def trickle(exchange: Exchange) -> None:
    exchange.head(200, {"Content-Length": "1000"})
    while exchange.write(b"x"):
        time.sleep(0.05)


def slow_headers(exchange: Exchange) -> None:
    while exchange.write(b"HTTP/1.1 200 OK\r\nX: " if exchange.command == "" else b"X"):
        time.sleep(0.05)


def silence(exchange: Exchange) -> None:
    time.sleep(1.5)
    exchange.cut()


def coded(name: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.give(200, b"abc", {"Content-Encoding": name})


CASES: dict[str, tuple[Callable[[Exchange], None], str]] = {
    "an endless body": (endless, "too_large"),
    "endless chunks": (endless_chunks, "too_large"),
    "a length beyond the limit": (says_too_much, "too_large"),
    "a length that is not kept": (says_more_than_it_gives, "fetch"),
    "a gzip bomb": (bomb, "too_large"),
    "a gzip that is cut": (cut_gzip, "unsupported_encoding"),
    "a gzip that is none": (no_gzip, "unsupported_encoding"),
    "one byte at a time": (trickle, "timeout"),
    "headers one byte at a time": (slow_headers, "timeout"),
    "no answer": (silence, "timeout"),
    "deflate": (coded("deflate"), "unsupported_encoding"),
    "brotli": (coded("br"), "unsupported_encoding"),
    "two codings": (coded("gzip, gzip"), "unsupported_encoding"),
    "an error status": (lambda exchange: exchange.give(500), "http_status"),
}


@pytest.mark.parametrize("name", CASES)
def test_f07_every_transfer_ends(name: str) -> None:
    """It stops at the cap or when its time is up, as an error with its code; what is held stays small."""
    route, code = CASES[name]
    with serving({"/x": route}) as site:
        web = Web(site, {"x.example": [PUBLIC]})
        tracemalloc.start()
        try:
            with pytest.raises(FetchError) as caught:
                fetch("http://x.example/x", limit=LIMIT, seconds=0.5 if code == "timeout" else 30, network=web)
            assert tracemalloc.get_traced_memory()[1] < 40 * LIMIT
        finally:
            tracemalloc.stop()
        assert caught.value.code == code
        with pytest.raises(MediaError) as refused:
            read_bytes(Image("http://x.example/x").found(), limit=LIMIT, seconds=0.5, network=web)
        assert refused.value.code == code or refused.value.code == "timeout"
    assert SECONDS == 15.0


def test_f07_a_resolver_that_hangs_ends_too() -> None:
    """The deadline covers the name."""

    class Stuck(Web):
        def resolve(self, host: str, port: int) -> list[str]:
            time.sleep(2)
            return [PUBLIC]

    with pytest.raises(FetchError) as caught:
        fetch("http://x.example/x", limit=LIMIT, seconds=0.2, network=Stuck(None))
    assert caught.value.code == "timeout"


def test_a_body_arrives_whole() -> None:
    """Plain, chunked and gzipped bodies give their bytes, the type and the last address."""
    data = bytes(range(256)) * 300

    def chunked(exchange: Exchange) -> None:
        exchange.head(200, {"Transfer-Encoding": "chunked", "Content-Type": "image/PNG; charset=x"})
        exchange.write(f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n")

    routes: dict[str, Callable[[Exchange], None]] = {
        "/plain": lambda exchange: exchange.give(200, data),
        "/zip": lambda exchange: exchange.give(200, gzip.compress(data), {"Content-Encoding": "gzip"}),
        "/chunked": chunked,
        "/moved": lambda exchange: exchange.give(308, b"", {"Location": "chunked?a=b%20c#d"}),
    }
    with serving(routes) as site:
        web = Web(site, {"x.example": [PUBLIC]})
        for path in routes:
            assert fetch(f"http://x.example{path}", limit=len(data), network=web).data == data
        last = fetch("http://x.example/moved", limit=len(data), network=web)
        assert (last.url, last.content_type) == ("http://x.example/chunked?a=b%20c", "image/png")
        assert site.asked[-1][2]["host"] == "x.example"
        with pytest.raises(FetchError):
            fetch("http://x.example/zip", limit=len(data) - 1, network=web)


def test_a_head_has_headers_and_no_redirect_unless_asked() -> None:
    """A caller that follows by hand sees the redirect itself, with what it carries."""
    moved = {"Location": "/far", "X-Linked-Size": "7"}
    with serving({"/x": lambda exchange: exchange.give(302, b"", moved)}) as site:
        with open_url(f"{site.url}/x", trust="configured", method="HEAD", redirects=0) as reply:
            assert (reply.status, reply.headers["x-linked-size"], reply.length) == (302, "7", 0)
        assert [method for method, _, _ in site.asked] == ["HEAD"]


def test_an_unreachable_host_is_explained() -> None:
    """A name without an address and a port where nobody listens are errors that say so."""
    with pytest.raises(FetchError, match="has no address") as caught:
        fetch("http://none.example/x?token=s3cret", limit=9, network=Web(None))
    assert "s3cret" not in str(caught.value)
    with serving({}) as site:
        port = site.port
    with pytest.raises(FetchError, match="no address of"):
        fetch(f"http://127.0.0.1:{port}/", trust="configured", limit=9)
    with pytest.raises(UsageError, match="scheme 'file'"):
        fetch("file:///etc/passwd", trust="configured", limit=9)
