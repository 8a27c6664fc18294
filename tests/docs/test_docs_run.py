"""The code in README and the guides runs as it stands, on the real weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import CHECKOUT, PAGES, code_of, name_of, needs, pages_for, run_page


@pytest.mark.parametrize("page", pages_for(), ids=name_of)
def test_the_code_of_a_page_runs(page: Path, real_home: Path, tmp_path: Path) -> None:
    """The python blocks of a page run one after the other, as one program."""
    run_page(page, real_home, tmp_path)


def test_every_page_with_code_is_run() -> None:
    """What is not run here needs one plugin, and the tests of that plugin run it."""
    elsewhere = {name_of(page): needs(page) for page in PAGES if code_of(page) and needs(page)}
    for page, plugins in elsewhere.items():
        assert len(plugins) == 1, f"{page} needs {sorted(plugins)}, and no test runs such a page"
        tests = CHECKOUT.glob(f"plugins/{min(plugins)}/tests/test_*.py")
        assert any(f'pages_for("{min(plugins)}")' in test.read_text(encoding="utf-8") for test in tests), page
    assert len(elsewhere) >= 2


def test_links_between_pages_hold() -> None:
    """Each relative link names a file that exists."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_architecture_page_lists_the_modules() -> None:
    """Each module and package at the top of the core has its line, and none that is gone has one."""
    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    package = CHECKOUT / "qwen_agent_kit"
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert listed == found - {"__init__", "__main__"}
