"""Which addresses are followed: one verdict for every way to write a host."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import PUBLIC, Exchange, Web, serving, words

from qwen_agent_kit import Image
from qwen_agent_kit.errors import FetchError, MediaError, UsageError
from qwen_agent_kit.media import read_bytes
from qwen_agent_kit.net import canonical, check_url, fetch, is_public

BLOCKS = words(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
SINGLE = words(
    "127.0.0.2 169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 168.63.129.16 255.255.255.255 192.0.0.170 "
    ":: ::1 fe80::1 fe80::a9fe:a9fe fc00::1 fd00:ec2::254 fd00:ec2::23 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fec0::1 "
    "ff02::1 100::1 2001:db8::1 2001::1 2001:10::1 2001:20::1 2002:7f00:1:: 2002:a00:1::1 2002:a9fe:a9fe::"
    " 3fff::1 5f00::1 "
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:a9fe:a9fe ::127.0.0.1 ::10.0.0.1 ::a9fe:a9fe "
    "64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::100.100.100.200 64:ff9b:1::1 "
    "64:ff9b:1:c0a8:1:100:: 64:ff9b:1::169.254.169.254 2606:4700::5efe:7f00:1 2606:4700::200:5efe:169.254.169.254 "
    "::ffff:0:127.0.0.1 2001:0:4136:e378:8000:63bf:3fff:fdd2"
)
PRIVATE = [
    *(
        str(ip)
        for block in BLOCKS
        for net in [ipaddress.ip_network(block)]
        for ip in (net[0], net[1], net[-2], net[-1])
    ),
    *SINGLE,
]
OPEN = words(
    "8.8.8.8 1.1.1.1 93.184.216.34 172.15.0.1 172.32.0.1 11.0.0.1 100.63.0.1 100.128.0.1 169.253.0.1 192.0.1.1 "
    "223.255.255.1 2606:4700:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8"
)


def written(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def blocked(url: str) -> bool:
    try:
        check_url(url)
    except UsageError as error:
        return error.code == "blocked_url"
    return False


def test_f01_no_private_address_is_dialled() -> None:
    """Over 100 loopback, private, link-local, metadata and transition addresses: refused, no connection is opened."""
    assert len(set(PRIVATE)) >= 103
    web = Web(None)
    with serving({"*": lambda exchange: exchange.give(200, b"secret")}) as site:
        for ip in PRIVATE:
            for part in (
                Image(f"http://{written(ip)}:{site.port}/x").found(),
                Image(f"https://{written(ip)}/").found(),
            ):
                with pytest.raises(MediaError) as caught:
                    read_bytes(part, network=web)
                assert caught.value.code == "blocked_url", ip
        for host in ("127.0.0.1", "localhost", "a.localhost", "[::1]", "[::ffff:127.0.0.1]", "0"):
            with pytest.raises(MediaError) as caught:
                read_bytes(Image(f"http://{host}:{site.port}/x").found())
            assert caught.value.code == "blocked_url"
        assert site.connections == 0
        assert read_bytes(Image(f"http://localhost:{site.port}/x")) == b"secret"  # what the user configured is theirs
    assert web.dialled == []


def test_public_addresses_pass() -> None:
    """What lies beside the private blocks, and IPv4 inside IPv6, is public."""
    for ip in OPEN:
        assert not blocked(f"http://{written(ip)}/"), ip


@pytest.mark.parametrize("answers", [[PUBLIC, "127.0.0.1"], ["10.0.0.1", PUBLIC], ["::1"], [PUBLIC, "fe80::1%eth0"]])
def test_f02_one_private_answer_refuses_the_name(answers: list[str]) -> None:
    """A name with a public and a private address is refused before either is dialled."""
    web = Web(None, {"two.example": answers})
    with pytest.raises(UsageError) as caught:
        fetch("http://two.example/x", limit=10, network=web)
    assert caught.value.code == "blocked_url"
    assert web.dialled == []


def test_f02_the_dialled_address_is_the_checked_one() -> None:
    """A name that turns private after the check is dialled where it was checked; the next time it is refused."""
    with serving({"/x": lambda exchange: exchange.give(200, b"fine", {"Connection": "close"})}) as site:
        web = Web(site, {"turns.example": [[PUBLIC], ["127.0.0.1"]]})
        assert fetch("http://turns.example/x", limit=10, network=web).data == b"fine"
        assert (web.resolved, web.dialled) == (["turns.example"], [PUBLIC])
        with pytest.raises(UsageError, match=r"127\.0\.0\.1"):
            fetch("http://turns.example/x", limit=10, network=web)
        assert web.dialled == [PUBLIC]


def test_f02_a_redirect_to_itself_is_checked_anew() -> None:
    """Rebinding between two hops of one transfer gains nothing either."""
    moved = {"Location": "/y", "Connection": "close"}
    with serving({"/x": lambda exchange: exchange.give(302, b"", moved)}) as site:
        web = Web(site, {"turns.example": [[PUBLIC], ["169.254.169.254"]]})
        with pytest.raises(UsageError) as caught:
            fetch("http://turns.example/x", limit=10, network=web)
        assert caught.value.code == "blocked_url"
        assert web.dialled == [PUBLIC]
        assert [path for _, path, _ in site.asked] == ["/x"]


TARGETS = words(
    "http://127.0.0.1/ http://[::1]/ http://10.1.2.3:8000/ http://0x7f.1/ http://2130706433/ //127.0.0.1/x "
    "http://169.254.169.254/latest /\\127.0.0.1/x \\\\127.0.0.1/ https:\\\\127.0.0.1/ http://[::1/ file:///etc/passwd "
    "gopher://x.example/ ftp://x.example/ data:text/plain,x javascript:1 http://private.example/ http://u:p@127.0.0.1/"
)


@pytest.mark.parametrize("target", TARGETS)
def test_f03_a_redirect_is_judged_at_its_hop(target: str) -> None:
    """A chain that ends at a private address or another scheme stops there: what was public is asked, it is not."""
    routes = {
        "/1": lambda exchange: exchange.give(301, b"", {"Location": "/2"}),
        "/2": lambda exchange: exchange.give(307, b"", {"Location": target}),
    }
    with serving(routes) as site:
        web = Web(site, {"x.example": [PUBLIC], "private.example": ["192.168.0.1"]})
        with pytest.raises(UsageError) as caught:
            fetch("http://x.example/1", limit=10, network=web)
        assert caught.value.code == "blocked_url"
        assert set(web.dialled) == {PUBLIC}
        assert [path for _, path, _ in site.asked][:2] == ["/1", "/2"]


def test_f03_ten_redirects_and_no_more() -> None:
    """Ten hops arrive; the eleventh is refused, and is not asked for."""

    def hop(exchange: Exchange) -> None:
        left = int(exchange.path.strip("/"))
        if left == 0:
            exchange.give(200, b"there")
        else:
            exchange.give(302, b"", {"Location": f"/{left - 1}"})

    with serving({"*": hop}) as site:
        web = Web(site, {"x.example": [PUBLIC]})
        assert fetch("http://x.example/10", limit=10, network=web).data == b"there"
        site.asked.clear()
        with pytest.raises(FetchError) as caught:
            fetch("http://x.example/11", limit=10, network=web)
        assert caught.value.code == "too_many_redirects"
        assert len(site.asked) == 11


def test_credentials_stay_with_their_host() -> None:
    """A redirect to another origin loses Authorization and Cookie; one to the same keeps them; `found` sends none."""
    secret = {"Authorization": "Bearer s3cret", "Cookie": "a=b", "X-Other": "kept"}
    with serving({"*": lambda exchange: exchange.give(200, b"y")}) as other:
        routes = {
            "/same": lambda exchange: exchange.give(302, b"", {"Location": "/end"}),
            "/away": lambda exchange: exchange.give(302, b"", {"Location": f"{other.url}/end"}),
            "/end": lambda exchange: exchange.give(200, b"x"),
        }
        with serving(routes) as site:
            assert fetch(f"{site.url}/same", trust="configured", limit=9, headers=secret).data == b"x"
            assert fetch(f"{site.url}/away", trust="configured", limit=9, headers=secret).data == b"y"
            assert site.asked[1][2]["authorization"] == "Bearer s3cret"
            assert other.asked[0][2].keys().isdisjoint({"authorization", "cookie"})
            assert other.asked[0][2]["x-other"] == "kept"
            local = site.url.replace("http://", "http://me:pw@")
            fetch(f"{local}/end", trust="configured", limit=9)
            assert site.asked[-1][2]["authorization"].startswith("Basic ")
            fetch("http://me:pw@x.example/end", limit=9, network=Web(site, {"x.example": [PUBLIC]}))
            assert "authorization" not in site.asked[-1][2]


def test_found_addresses_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy carries what the user configured, never what was found."""
    with serving({"*": lambda exchange: exchange.give(200, b"by proxy")}) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with serving({"*": lambda exchange: exchange.give(200, b"direct")}) as site:
            web = Web(site, {"x.example": [PUBLIC]})
            assert fetch("http://x.example/", limit=99, network=web).data == b"direct"
            assert fetch("http://x.example/", trust="configured", limit=99).data == b"by proxy"
            assert proxy.connections == 1


F04 = {
    "127.0.0.1": "0x7f.1 0x7F.0.0.1 0177.1 0177.0.0.01 2130706433 017700000001 0x7f000001 127.1 127.0.1 127.0.0.1. "
    "%31%32%37.0.0.1 127。0。0。1 １２７.０.０.１ ①②⑦.0.0.1 user@127.0.0.1 x.example@127.0.0.1 a:b@c@127.0.0.1 "  # noqa: RUF001
    "127.0.0.1\\@x.example 127.0.0.1\\x 127.0.0.1?@x.example 127.0.0.1#@x.example",
    "8.8.8.8": "0x8.8.8.8 010.8.8.8 134744072 0x08080808 8.8.2056 8.8.8.8. ８.8.8.8 user@8.8.8.8 8.8.8.8\\@127.0.0.1 "  # noqa: RUF001
    "8.8.8.8?@127.0.0.1 127.0.0.1@8.8.8.8",
    "localhost": "LOCALHOST localhost. ｌocalhost loc%61lhost LOCAL\u00adHOST",  # noqa: RUF001
    "x.example": "X.EXAMPLE x.example. ｘ.example x。example me:pw@x.example x.example\\@127.0.0.1",  # noqa: RUF001
    "xn--bcher-kva.example": "bücher.example BÜCHER.example bu\u0308cher.example xn--bcher-kva.example.",
    "::ffff:127.0.0.1": "[::ffff:127.0.0.1] [::FFFF:7F00:1] [0:0:0:0:0:ffff:127.0.0.1]",
}


@pytest.mark.parametrize("host", F04)
def test_f04_other_spellings_are_the_same_host(host: str) -> None:
    """Host and verdict of each spelling are those of the canonical form."""
    plain = canonical(f"http://{written(host)}/")
    for spelling in F04[host].split(" "):
        found = canonical(f"http://{spelling}/")
        assert found.host == plain.host, spelling
        assert blocked(f"http://{spelling}/") == blocked(plain.url), spelling


@pytest.mark.parametrize(
    "url",
    words(
        "http:// http://? http://a..b/ http://.a/ http://a../ http://256.1.1.1/ http://1.2.3.4.5/ http://0x100000000/ "
        "http://1.2.3.08/ http://[::1 http://[::1]x/ http://[fe80::1%25eth0]/ http://[v1.x]/ http://a:0/ "
        "http://a:65536/ http://a:x/ http://a:80:80/ http://x.0x/ http://a%00b/ http://a%2fb/ http://a%ff/ http://<a>/ "
        "http://a|b/ x.example /x ftp://a/ HTTPX://a/"
    ),
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """Empty hosts and labels, numbers out of range, zone identifiers, ports that are none, forbidden characters."""
    assert blocked(url)
    with pytest.raises(UsageError):
        check_url(url, "configured")


@pytest.mark.parametrize("url", ["http://a\n/", "http://a/\r\nX: y", "http://a\x00/", "http://a/\ud800", "http://a\t/"])
def test_control_characters_are_refused(url: str) -> None:
    """No header can be smuggled into a request."""
    assert blocked(url)


def _part(draw: st.DrawFn, value: int) -> str:
    return draw(st.sampled_from([f"{value}", f"0{value:o}", f"{value:#x}", f"0X{value:X}", f"0x000{value:x}"]))


@st.composite
def spellings(draw: st.DrawFn) -> tuple[ipaddress.IPv4Address, str]:
    """An IPv4 address, and one of its notations in an address."""
    hot = st.sampled_from([0x7F000001, 0x0A000001, 0xA9FEA9FE, 0xC0A80001, 0x08080808])
    ip = ipaddress.IPv4Address(draw(hot | st.integers(0, 2**32 - 1)))
    parts = draw(st.integers(1, 4))
    octets = list(ip.packed)
    numbers = [*octets[: parts - 1], int.from_bytes(bytes(octets[parts - 1 :]), "big")]
    host = ".".join(_part(draw, number) for number in numbers)
    host += draw(st.sampled_from(["", "."]))
    if draw(st.booleans()):
        host = host.translate({ord(c): chr(ord(c) + 0xFEE0) for c in draw(st.text("0123456789abcdefx", max_size=4))})
    if draw(st.booleans()):
        at = draw(st.integers(0, len(host) - 1))
        host = host[:at] + "".join(f"%{b:02x}" for b in host[at].encode()) + host[at + 1 :]
    if draw(st.integers(0, 3)) == 0:
        host = f"[{draw(st.sampled_from(['::ffff:', '64:ff9b::']))}{ip}]"
    before = draw(st.sampled_from(["", "u@", "u:p@", "8.8.8.8@", "x.example:80@", "[::1]@"]))
    after = draw(st.sampled_from(["", ":80", ":8443/", "/", "\\@8.8.8.8", "?@8.8.8.8", "#@8.8.8.8", "/x:y@8.8.8.8"]))
    slashes = draw(st.sampled_from(["//", "/", "", "///", "\\\\"]))
    return ip, f"{draw(st.sampled_from(['http', 'HTTP', 'https']))}:{slashes}{before}{host}{after}"


@given(spellings())
def test_f04_any_spelling_has_the_verdict_of_its_address(case: tuple[ipaddress.IPv4Address, str]) -> None:
    """However an IPv4 address is written, it is blocked exactly where the address is not public."""
    ip, url = case
    address = canonical(url)
    assert address.ip is not None
    assert int(address.ip) & 0xFFFFFFFF == int(ip)
    assert blocked(url) == (not is_public(ip))


@given(st.text(max_size=40), st.sampled_from(["", "http://", "http:", "https://[", "http://a@", "http://127.0.0.1"]))
def test_any_text_is_judged(text: str, start: str) -> None:
    """Any text is an address whose canonical form is its own, or is refused; nothing else is raised."""
    try:
        address = canonical(start + text)
    except UsageError:
        return
    again = canonical(address.url)
    assert (again.url, again.host, again.port) == (address.url, address.host, address.port)
    assert address.url.isascii()
