"""Conformance 10: addresses, codings and sources that must be refused, or must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import load
from loopback import PUBLIC, Web, serving

from qwen_agent_kit import Image
from qwen_agent_kit.errors import FetchError, MediaError, UsageError
from qwen_agent_kit.media import read_bytes
from qwen_agent_kit.net import canonical, check_url, fetch

CASES = load("10_hostile_inputs.jsonl")
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def of(*kinds: str) -> Any:
    found = [case for case in CASES if case["kind"] in kinds]
    assert found
    return pytest.mark.parametrize("case", found, ids=lambda case: case["id"])


def blocked(url: str) -> bool:
    try:
        check_url(url)
    except UsageError as error:
        return error.code == "blocked_url"
    return False


@of("ssrf_ip")
def test_addresses(case: dict[str, Any]) -> None:
    """Private and metadata addresses are blocked where they are found, as literals and as a name's answer."""
    ip = case["value"]
    url = f"http://[{ip}]/" if ":" in ip else f"http://{ip}/"
    assert check_url(url, "configured").url  # the user may name any
    expected = case["expect"] != "allow"  # what is "not metadata" in these cases is private, so blocked as well
    assert blocked(url) == expected
    web = Web(None, {"x.example": [ip]})
    if expected:
        with pytest.raises(UsageError) as caught:
            fetch("http://x.example/", limit=9, network=web)
        assert caught.value.code == "blocked_url"
        assert web.dialled == []


@of("ssrf_url", "ssrf_url_scheme")
def test_urls(case: dict[str, Any]) -> None:
    """URLs with transition addresses and with other schemes are blocked."""
    value = case["value"]
    assert blocked(value if isinstance(value, str) else value[0])


@of("ssrf_domain_allowlist")
def test_hosts_are_normalised(case: dict[str, Any]) -> None:
    """A host reads the same however it is written."""
    assert canonical(case["value"]).host == "example.com"


@of("ssrf_content_encoding_with_cap")
def test_codings(case: dict[str, Any]) -> None:
    """A coding whose output cannot be bounded is refused."""
    routes = {"/": lambda exchange: exchange.give(200, b"x", {"Content-Encoding": case["value"]})}
    with serving(routes) as site, pytest.raises(FetchError) as caught:
        fetch("http://x.example/", limit=99, network=Web(site, {"x.example": [PUBLIC]}))
    assert caught.value.code == "unsupported_encoding"


@of("data_url")
def test_data_urls(case: dict[str, Any]) -> None:
    """Parameters of RFC 2397 are accepted."""
    assert read_bytes(Image(case["value"].replace("<valid png>", PNG)).found()).startswith(b"\x89PNG")


@of("file_url")
def test_file_urls(case: dict[str, Any], tmp_path: Path) -> None:
    """Allowed under a root, refused without one."""
    (tmp_path / "x.png").write_bytes(b"data")
    url = case["value"].format(allowed_dir=tmp_path, name="x.png")
    assert read_bytes(Image(url).found(), root=tmp_path) == b"data"
    with pytest.raises(MediaError):
        read_bytes(Image(url).found())
