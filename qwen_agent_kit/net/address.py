"""What an address really names: one canonical form for every way to write a host, and which hosts are public.

The parsing follows the WHATWG URL standard, as browsers do, because that is what writers of addresses rely on:
``0x7f.1``, ``2130706433`` and ``127.0.0.1`` are one host, a backslash is a slash, what stands before ``@`` no host.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, unquote_to_bytes, urljoin

from qwen_agent_kit.errors import UsageError

__all__ = ["Address", "IP", "canonical", "is_public", "joined", "refuse"]

IP = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 8192

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62}))*")
_PORTS = {"http": 80, "https": 443}
_PATH = "/?%:@!$&'()*+,;=~-._[]|"


@dataclass(frozen=True, slots=True)
class Address:
    """An http(s) address in canonical form.

    Args:
        scheme: ``http`` or ``https``.
        host: A name in ASCII without a dot at its end, or an IP address without brackets.
        port: From 1 to 65535.
        target: Path and query, escaped; the fragment is dropped.
        ip: The host, where it is an IP address.
        userinfo: What stood before ``@``, as written; None where nothing did.
    """

    scheme: str
    host: str
    port: int
    target: str
    ip: IP | None = None
    userinfo: str | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port; credentials never cross it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if _PORTS[self.scheme] == self.port else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    @property
    def url(self) -> str:
        """The whole, without credentials."""
        return self.origin + self.target


def refuse(what: str, hint: str | None = None) -> NoReturn:
    """Raise the error for an address that is not followed.

    Raises:
        UsageError: Always, with ``code="blocked_url"``.
    """
    raise UsageError(what, hint=hint, code="blocked_url")


def canonical(url: str) -> Address:
    """Read an address.

    Raises:
        UsageError: ``blocked_url`` where it is no http(s) address, or its host or port can be none.
    """
    if not isinstance(url, str) or len(url) > MAX_URL:
        refuse(f"the address is {type(url).__name__} of {len(url)}; allowed: text of at most {MAX_URL} characters")
    text = url.strip(" ")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text):
        refuse(f"the address {text[:80]!r} holds control characters; allowed: none")
    match = _SCHEME.fullmatch(text)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in _PORTS:
        refuse(f"the address {text[:80]!r} has the scheme {scheme[:20]!r}; allowed: http, https")
    authority, target = _split(match[2])
    userinfo, at, place = authority.rpartition("@")
    host, ip, port = _place(place, text)
    return Address(scheme, host, port or _PORTS[scheme], target, ip, userinfo if at else None)


def joined(base: Address, location: str) -> str:
    """Where a redirect leads, not judged yet; a backslash before the query is a slash here too."""
    location = location.strip()
    end = min((i for i in (location.find("?"), location.find("#")) if i >= 0), default=len(location))
    try:
        return urljoin(base.url, location[:end].replace("\\", "/") + location[end:])
    except ValueError:
        refuse(f"a redirect leads to {location[:80]!r}, which is no address")


def _split(rest: str) -> tuple[str, str]:
    """(authority, path and query): backslashes before the query are slashes, and any number of them may lead."""
    rest = rest.partition("#")[0]
    before, mark, query = rest.partition("?")
    before = before.replace("\\", "/").lstrip("/")
    authority, slash, path = before.partition("/")
    return authority, quote(f"/{path}" if slash else "/", safe=_PATH) + quote(mark + query, safe=_PATH)


def _place(place: str, url: str) -> tuple[str, IP | None, int | None]:
    """Host, its IP address if it is one, and the port that is written."""
    shown = f"the address {url[:80]!r}"
    if place.startswith("["):
        inner, bracket, port = place[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            refuse(f"{shown} has no closing bracket, or text behind it")
        try:
            six = ipaddress.IPv6Address(inner)
        except ValueError:
            refuse(f"{shown} has the host {place[:60]!r}, which is no IPv6 address")
        if six.scope_id is not None:
            refuse(f"{shown} names a network interface; allowed: addresses without `%`")
        return str(six), six, _port(port[1:], shown)
    host, _, port = place.partition(":")
    name = _name(host, shown)
    four = _ipv4(name, shown)
    return (name, None, _port(port, shown)) if four is None else (str(four), four, _port(port, shown))


def _port(text: str, shown: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and 1 <= int(text) <= 65535):
        refuse(f"{shown} has the port {text[:20]!r}; allowed: 1 to 65535")
    return int(text)


def _name(host: str, shown: str) -> str:
    """The host in lower-case ASCII: escapes undone, mapped by UTS 46 and IDNA, one dot at the end dropped."""
    import idna

    try:
        text = unquote_to_bytes(host).decode("utf-8")
        mapped = text.lower() if text.isascii() else idna.uts46_remap(text, std3_rules=False)
        mapped = mapped.removesuffix(".")
        ascii_name = mapped if mapped.isascii() else idna.encode(mapped).decode("ascii")
    except (UnicodeError, ValueError):
        refuse(f"{shown} has a host that is no name (IDNA)")
    if not _NAME.fullmatch(ascii_name):
        refuse(f"{shown} has the host {ascii_name[:60]!r}; allowed: a name of letters, digits, `-` and `.`")
    return ascii_name


def _ipv4(name: str, shown: str) -> ipaddress.IPv4Address | None:
    """A name whose last label is a number is an IPv4 address in one of its old notations, or nothing."""
    labels = name.split(".")
    if _number(labels[-1]) is None and not labels[-1].isdigit():
        return None
    numbers = [_number(label) for label in labels]
    whole = [n for n in numbers if n is not None]
    room = 256 ** (5 - len(labels))
    if len(whole) != len(labels) or len(labels) > 4 or any(n > 255 for n in whole[:-1]) or whole[-1] >= room:
        refuse(f"{shown} has the host {name[:60]!r}, which is no IPv4 address")
    return ipaddress.IPv4Address(sum(n << (8 * (3 - i)) for i, n in enumerate(whole[:-1])) + whole[-1])


def _number(label: str) -> int | None:
    """Decimal, octal (``0177``) or hexadecimal (``0x7f``, ``0x``)."""
    if label.startswith("0x"):
        digits, base = label[2:], 16
    elif len(label) > 1 and label.startswith("0"):
        digits, base = label[1:], 8
    else:
        digits, base = label, 10
    if base == 16 and not digits:
        return 0
    allowed = "0123456789abcdef"[:base]
    return int(digits, base) if digits and len(digits) <= 80 and all(d in allowed for d in digits) else None


_NET4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, reachable only from inside
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_NET6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, benchmarking, ORCHID and the like
        "2001:db8::/32",
        "2002::/16",  # 6to4: carries an IPv4 address to whoever relays it
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
_UNICAST = ipaddress.IPv6Network("2000::/3")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(ip: IP) -> bool:
    """Whether an address belongs to the public internet; IPv4 inside IPv6 is judged as IPv4.

    The blocks are those of IANA's special-purpose registries (RFC 6890 and successors). Transition forms that relay to
    IPv4 (6to4, Teredo, ISATAP, IPv4-compatible, local NAT64) are not public whatever they carry.
    """
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip in _MAPPED or ip in _NAT64:
            return is_public(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        inside = int(ip) >> 32 & 0xFFFFFFFF
        return ip in _UNICAST and inside not in _ISATAP and not any(ip in net for net in _NET6)
    return not any(ip in net for net in _NET4)
