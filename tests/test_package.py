"""The package as a whole: what is installed, what importing it costs, and the habits that every module keeps."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import qwen_agent_kit
from qwen_agent_kit import hookspecs
from qwen_agent_kit.plugins import HOOKS, KINDS

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = Path(qwen_agent_kit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PLUGINS = sorted(CHECKOUT.glob("plugins/*/pyproject.toml"))
SHIPPED = sorted([*CHECKOUT.glob("plugins/*/qwen_agent_kit_*.py"), *CHECKOUT.glob("plugins/*/qwen_agent_kit_*/*.py")])
MUTANTS = CHECKOUT / "tests" / "mutants"
HOOKS_PAGE = CHECKOUT / "docs" / "reference" / "hooks.md"
FOREIGN = ("torch", "transformers", "openai", "mcp")


def _names(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent if PACKAGE in path.parents else CHECKOUT))


@pytest.mark.parametrize("patch", sorted(MUTANTS.glob("*.patch")), ids=lambda patch: patch.stem)
def test_a_mutant_fits(patch: Path) -> None:
    """Each changes one line that is there, and names tests that are; so `make mutants` can begin."""
    spec = importlib.util.spec_from_file_location("mutants_run", MUTANTS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    path, text = run.mutated(patch, CHECKOUT)
    assert text != path.read_text(encoding="utf-8")
    for test in run.tests_of(patch):
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (CHECKOUT / file).read_text(encoding="utf-8")


def test_the_tests_see_the_installed_wheel():
    """What is imported is what pip installed, not the checkout; `make test` sees to it."""
    assert "site-packages" in PACKAGE.parts, f"{PACKAGE} is not installed; run the tests with `make test`"
    assert CHECKOUT / "qwen_agent_kit" != PACKAGE


def _fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_constructing_loads_nothing_heavy():
    """`from qwen_agent_kit import Agent, tool` and an Agent leave torch, transformers, openai and mcp alone."""
    found = f"print([n for n in {FOREIGN} if n in sys.modules])"
    code = f"import sys\nfrom qwen_agent_kit import Agent, tool\nAgent()\n{found}"
    assert _fresh(code).strip() == "[]"


def test_importing_and_constructing_loads_little():
    """Both together load at most fifty modules of ours, and nothing large of others; `qak bench start` times it."""
    code = "import sys\nfrom qwen_agent_kit import Agent, tool\nAgent()\nprint(*sys.modules)"
    loaded = _fresh(code).split()
    large = {
        "pydantic",
        "jinja2",
        "tokenizers",
        "httpx",
        "numpy",
        "rich",
        "click",
        "asyncio",
        "huggingface_hub",
        "sqlite3",
    }
    assert not large & set(loaded)
    assert sum(name.startswith("qwen_agent_kit") for name in loaded) <= 50


def test_listing_what_plugins_offer_loads_no_torch():
    """Every run asks the shipped plugins for backends, models, engines and tools: that costs no engine's start."""
    code = (
        "import sys\nfrom qwen_agent_kit.host import Host\nhost = Host()\n"
        "print([b.name for b in host.backends], len(host.entries), len(host.engines), len(host.tools()), host.hooks)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    offered, loaded = _fresh(code).splitlines()
    for name in ("vision", "audio"):
        assert (repr(name) in offered) == (find_spec(f"qwen_agent_kit_{name}") is not None)
    assert loaded == "[]"


def test_no_module_loads_torch_at_the_top_but_engine_and_models():
    """Importing any other module leaves torch and transformers out."""
    names = [
        module.name
        for module in pkgutil.iter_modules([str(PACKAGE)])
        if module.name not in ("engine", "models", "testing", "__main__")
    ]
    code = (
        f"import importlib, sys\nfor name in {names}:\n    importlib.import_module('qwen_agent_kit.' + name)\n"
        f"print([n for n in {FOREIGN} if n in sys.modules])"
    )
    assert _fresh(code).strip() == "[]"


def test_every_public_name_is_there():
    """`__all__` is sorted, each name can be had, and dir() lists it."""
    assert list(qwen_agent_kit.__all__) == sorted(qwen_agent_kit.__all__)
    for name in qwen_agent_kit.__all__:
        assert getattr(qwen_agent_kit, name) is not None
        assert name in dir(qwen_agent_kit)
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        qwen_agent_kit.Agnet  # noqa: B018  # the access is what is tested


@pytest.mark.parametrize("path", MODULES, ids=_names)
def test_all_is_sorted_and_true(path: Path):
    """Where a module states `__all__`, it is sorted, without doubles, and each name exists."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    if "templates" in parts or parts[-1] == "__main__" or "__all__" not in path.read_text(encoding="utf-8"):
        return
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    names = list(module.__all__)
    assert names == sorted(set(names))
    assert all(hasattr(module, name) for name in names)


def _functions(tree: ast.AST) -> list[tuple[str, int]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(n.name, (n.end_lineno or 0) - n.lineno + 1) for n in ast.walk(tree) if isinstance(n, kinds)]


def test_modules_and_functions_stay_short():
    """No module passes 420 lines, no function 60, and nine functions in ten have at most 30."""
    lengths = []
    for path in [*MODULES, *SHIPPED]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 420, _names(path)
        for name, length in _functions(ast.parse(text)):
            assert length <= 60, f"{_names(path)}: {name} has {length} lines"
            lengths.append(length)
    assert statistics.quantiles(lengths, n=10)[-1] <= 30


def test_no_loose_ends():
    """No TODO, no stub, no bare exception handler, and every lint exception names its rule."""
    loose = re.compile(
        r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError"
        r"|except Exception:\s*$|except:\s*$|type: ignore(?!\[)|noqa(?!:)",
        re.MULTILINE,
    )
    for path in [*MODULES, *SHIPPED]:
        found = loose.search(path.read_text(encoding="utf-8"))
        assert not found, f"{_names(path)}: {found[0] if found else ''}"


def test_every_exception_to_the_linters_has_its_reason():
    """A `noqa` or `type: ignore` is followed by why, on its line."""
    bare = re.compile(r"#\s*(noqa:\s*[A-Z0-9, ]+|type:\s*ignore\[[a-z, -]+\])\s*$", re.MULTILINE)
    for path in [*MODULES, *SHIPPED]:
        found = bare.search(path.read_text(encoding="utf-8"))
        assert not found, f"{_names(path)}: {found[0] if found else ''}"


def test_there_is_no_utils_module():
    """A module is named for its concept."""
    assert not [path for path in MODULES if path.stem in ("util", "utils", "helpers", "misc", "common")]


# --- plugins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.parent.name)
def test_a_shipped_plugin_has_its_shape(path: Path):
    """Distribution, module and entry points have the agreed names; the core's same minor is required."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    name = path.parent.name
    minor = ".".join(qwen_agent_kit.__version__.split(".")[:2])
    assert project["name"] == f"qwen-agent-kit-{name}"
    assert project["version"].startswith(f"{minor}.")
    assert f"qwen-agent-kit=={minor}.*" in project["dependencies"]
    for group, points in project["entry-points"].items():
        assert group.removeprefix("qwen_agent_kit.") in KINDS
        assert set(points.values()) == {f"qwen_agent_kit_{name}"}
    assert (path.parent / "README.md").exists()
    assert list((path.parent / "tests").glob("test_*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_plugin_imports_only_what_plugins_may(path: Path):
    """The top level and the modules named for plugin authors, never another plugin."""
    allowed = {"backends", "messages", "events", "tools", "media", "net", "foreign", "catalog", "errors", "testing"}
    allowed |= {"paths"}  # where a plugin may keep what it fetched
    own = path.relative_to(CHECKOUT / "plugins").parts[1].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            first, _, rest = name.partition(".")
            assert first == own or not first.startswith("qwen_agent_kit_"), name
            assert first != "qwen_agent_kit" or not rest or rest.split(".")[0] in allowed, name


def test_extras_name_the_shipped_plugins():
    """Each shipped plugin is an extra of the core, at the same minor."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for path in PLUGINS:
        assert extras[path.parent.name] == [f"qwen-agent-kit-{path.parent.name}==0.1.*"]


def test_constraints_are_exact_and_whole():
    """Every line pins one version, without a local label, and every direct dependency is pinned."""
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["engine"]]:
        assert re.split(r"[<>=!~ \[]", requirement)[0].lower() in pinned


# --- hooks -------------------------------------------------------------------------------------------------------


def _section(hook: str) -> str:
    """The text under the hook's heading on the reference page."""
    parts = re.split(r"^## `(\w+)`$", HOOKS_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(hook, "")


def test_the_page_lists_the_hooks_and_no_other():
    """A heading per hook, in the order of the specifications."""
    headings = re.findall(r"^## `(\w+)`$", HOOKS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [name for name in vars(hookspecs) if name in HOOKS]


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_a_hook_is_documented_tested_and_used(hook: str):
    """It has a docstring, its true signature on the reference page, a test, and a shipped user that the page names."""
    function = getattr(hookspecs, hook)
    assert inspect.getdoc(function)
    source = inspect.getsource(function)
    signature = re.search(r"def (.*?):(?:\s*#.*)?\n", source, re.DOTALL)
    assert signature
    assert re.sub(r"\s+", " ", signature[1]).strip() in re.sub(r"\s+", " ", _section(hook))
    tests = "".join(path.read_text(encoding="utf-8") for path in CHECKOUT.glob("tests/plugins/*.py"))
    tests += "".join(path.read_text(encoding="utf-8") for path in CHECKOUT.glob("tests/support/*.py"))
    assert hook in tests
    user = re.search(r"^Used by: (.+)$", _section(hook), re.MULTILINE)
    assert user, f"{hook} names no user"
    paths = re.findall(r"`([\w./-]+)`", user[1])
    assert paths
    for path in paths:
        assert f"def {hook}(" in (CHECKOUT / path).read_text(encoding="utf-8"), f"{path} does not implement {hook}"
