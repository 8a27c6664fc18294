"""F05: paths inside messages: none but what lies under a root that the caller allowed, links followed first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen_agent_kit import Image
from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.media import read_bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.png").write_bytes(b"allowed")
    (inside / "sub" / "b c.png").write_bytes(b"allowed")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "away").symlink_to(tmp_path)
    (inside / "here").symlink_to(inside / "a.png")
    (inside / "loop").symlink_to(inside / "loop")
    return inside


BAD = [
    "{outside}/secret",
    "file://{outside}/secret",
    "../secret",
    "sub/../../secret",
    "file://{root}/../secret",
    "file://{root}/%2e%2e/secret",
    "{root}/link",
    "away/secret",
    "{root}2/secret",
    "/proc/self/environ",
    "file:///proc/self/environ",
    "file:/proc/self/environ",
    "/proc/self/root{outside}/secret",
    "file://other.example{root}/a.png",
    "FILE://127.0.0.1{root}/a.png",
    "loop",
    ".",
    "sub",
    "none.png",
]


@pytest.mark.parametrize("source", BAD)
def test_f05_a_found_path_leaves_no_root(root: Path, source: str) -> None:
    """Whatever the notation, a found path outside the root is refused, and with no root every path is."""
    source = source.format(outside=root.parent, root=root)
    for allowed in (None, root):
        with pytest.raises(MediaError) as caught:
            read_bytes(Image(source).found(), root=allowed)
        assert caught.value.code in ("blocked_path", "blocked_url", "unreadable")
        assert b"secret" not in str(caught.value).encode() or "secret" in source


def test_f05_a_found_path_under_the_root_is_read(root: Path) -> None:
    """Relative to it, absolute, as a URL, through a link that stays inside."""
    for source in ("a.png", f"{root}/a.png", f"file://{root}/a.png", f"file://localhost{root}/sub/b%20c.png", "here"):
        assert read_bytes(Image(source).found(), root=root) == b"allowed"
        assert read_bytes(Image(root / "a.png").found(), root=root) == b"allowed"
    with pytest.raises(MediaError):
        read_bytes(Image("a.png").found())
    assert read_bytes(Image(f"file://{root}/link")) == b"secret"  # the user's own path is the user's


def test_f05_a_link_put_in_the_way_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that becomes a link between check and opening opens nothing."""
    true_open, seen = os.open, []

    def swapped(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if not seen:
            seen.append(path)
            (root / "sub").rename(root / "old")
            (root / "sub").symlink_to(root.parent / "root2")
        return true_open(path, flags, *args, **kwargs)  # type: ignore[call-overload, no-any-return]

    (root.parent / "root2" / "b c.png").write_bytes(b"secret")
    monkeypatch.setattr(os, "open", swapped)
    monkeypatch.setattr(os, "supports_dir_fd", {swapped, *os.supports_dir_fd})
    with pytest.raises(MediaError) as caught:
        read_bytes(Image("sub/b c.png").found(), root=root)
    assert caught.value.code == "unreadable"
    assert seen
