"""Media sources: what may be read, from where, and how much."""

from __future__ import annotations

import base64
import os
import tracemalloc
from pathlib import Path

import pytest

from qwen_agent_kit import Image
from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.media import digest_of, kind_of_file, read_bytes


def test_bytes_paths_and_data_urls_are_read(tmp_path: Path) -> None:
    """The three forms give the same bytes."""
    data = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    file = tmp_path / "x.bin"
    file.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert {read_bytes(Image(source)) for source in (data, str(file), file, url)} == {data}
    assert kind_of_file(data) == "image/png"
    assert digest_of(data) == Image(data).digest


def test_found_sources_name_no_files(tmp_path: Path) -> None:
    """A path that came inside a message is refused, whether the file exists or not."""
    file = tmp_path / "secret"
    file.write_bytes(b"x")
    for source in (str(file), "/etc/passwd", "../x", "file:///etc/passwd", "http://127.0.0.1/x"):
        with pytest.raises(MediaError) as caught:
            read_bytes(Image(source).found())
        assert caught.value.code in ("blocked_path", "blocked_url")


def test_what_is_too_large_or_odd_is_refused(tmp_path: Path) -> None:
    """Size is checked before and while reading; directories, pipes and missing files are refused at once."""
    big = tmp_path / "big"
    big.write_bytes(bytes(100))
    os.mkfifo(tmp_path / "pipe")
    url = "data:;base64," + base64.b64encode(bytes(100)).decode()
    for source in (bytes(100), str(big), url):
        with pytest.raises(MediaError, match="at most 99"):
            read_bytes(Image(source), limit=99)
    for odd in (tmp_path, tmp_path / "pipe", tmp_path / "none", "a\0b", 3, "data:x", "data:;base64,%%%", "data:,"):
        with pytest.raises(MediaError):
            read_bytes(Image(odd))


BROKEN = {
    "no comma": "data:image/png;base64",
    "no base64": "data:image/png;base64,a*b=",
    "padding in the middle": "data:image/png;base64,aa==aaaa",
    "cut off": "data:image/png;base64,aaaaa",
    "empty": "data:image/png;base64,",
    "line feeds": "data:image/png;base64,aaaa\naaaa",
    "too large": "data:image/png;base64," + "A" * (2**21 + 100),
}


@pytest.mark.parametrize("name", BROKEN)
def test_f06_broken_data_urls_are_refused(name: str) -> None:
    """Each with a code; nothing is decoded before its size is known."""
    with pytest.raises(MediaError) as caught:
        read_bytes(Image(BROKEN[name]), limit=2**20)
    assert caught.value.code == ("too_large" if name == "too large" else "invalid_data_url")


def test_f06_a_huge_data_url_costs_no_more_than_itself() -> None:
    """300 MB of base64 are refused without a copy of them."""
    url = "data:image/png;base64," + "A" * (300 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(MediaError, match="allowed: at most 67108864"):
            read_bytes(Image(url))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 300 * 2**20
