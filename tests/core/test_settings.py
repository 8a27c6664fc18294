"""config.toml and the environment: what is wrong is named by key and line, and no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_agent_kit import Host
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement.layout import LAYOUTS
from qwen_agent_kit.settings import _ALLOWED, Settings, config_path, load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_the_environment_goes_over_the_file(file: Path) -> None:
    """Each setting comes from its variable where that is set, else from the file, else it is None."""
    file.write_text('model = "a"\ncontext = 4096\n')
    assert load_settings(file, {}) == Settings(model="a", context=4096)
    assert load_settings(file, {"QAK_MODEL": "b", "QAK_CONTEXT": "9"}) == Settings(model="b", context=9)
    assert load_settings(file.parent / "none", {}) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('model = "a"\nmodle = "b"\n', "line 2: the key 'modle' is unknown"),
        ("\n\ncontext = 'x'\n", "line 3: `context` is 'x'; allowed: a whole number"),
        ("context = true", "line 1: `context` is True"),
        ("context = 0", "line 1: `context` is 0"),
        ("model = 3", "line 1: `model` is 3; allowed: a string"),
        ("[model]\nx = 1", "line 1: `model`"),
        ("context = -1", "line 1: `context` is -1; allowed: a whole number from 1"),
        ('model = "a"\nquant = "foo"', "line 2: `quant` is 'foo'; allowed: auto, fp32, bf16, int8, int4"),
        ('prefixes = "no"', "line 1: `prefixes` is 'no'; allowed: on, off"),
        ("model = ", "line 1, at the end"),
        ('model = "a"\nmodel = "b"', "line 2"),
        ("x = " + "[" * 3000, "config.toml"),
        ("#" * 70000, "70000 bytes"),
    ],
)
def test_f61_a_wrong_file_is_named_by_key_and_line(file: Path, text: str, words: str) -> None:
    """Unknown keys, wrong types and broken syntax are usage errors that say where."""
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(file, {})
    assert words in str(caught.value)


def test_f61_a_file_that_is_no_text_is_named_by_line(file: Path) -> None:
    """Bytes that are not UTF-8 are told with their line, in words of the user's world."""
    file.write_bytes(b'model = "a"\nquant = "\xff"\n')
    with pytest.raises(UsageError, match="line 2: it is not UTF-8"):
        load_settings(file, {})


def test_f61_a_wrong_variable_is_named(file: Path) -> None:
    """A variable that holds no such value is named, not silently dropped for the file's."""
    file.write_text("context = 5")
    with pytest.raises(UsageError, match="QAK_CONTEXT"):
        load_settings(file, {"QAK_CONTEXT": "many"})


@pytest.mark.parametrize(("variable", "text"), [("QAK_QUANT", "foo"), ("QAK_CONTEXT", "0"), ("QAK_PREFIXES", "no")])
def test_f61_a_variable_holds_only_what_is_allowed(file: Path, variable: str, text: str) -> None:
    """It is refused when settings are read, not when a model is opened."""
    with pytest.raises(UsageError, match=f"`{variable}` in the environment is '{text}'; allowed: "):
        load_settings(file, {variable: text})


def test_f61_a_good_variable_goes_over_a_wrong_line(file: Path) -> None:
    """The hint names the file and the variable, and the variable does mend it."""
    file.write_text('quant = "foo"\n')
    with pytest.raises(UsageError) as caught:
        load_settings(file, {})
    assert str(file) in caught.value.hint
    assert "QAK_QUANT" in caught.value.hint
    assert load_settings(file, {"QAK_QUANT": "int8"}).quant == "int8"


def test_the_schemes_are_those_of_the_planner() -> None:
    """What a settings file may say is what the planner takes."""
    assert set(_ALLOWED["quant"]) == {"auto", *(name for name, layout in LAYOUTS.items() if layout.ours)}


def test_f61_secrets_are_masked(file: Path) -> None:
    """A token shows neither in ``repr``, nor in JSON, nor in the error of a file that holds it."""
    secret = "hf_canary123"
    shown = repr(load_settings(file, {"HF_TOKEN": secret})) + str(load_settings(file, {"HF_TOKEN": secret}).to_dict())
    for text in (f'hub_token = ["{secret}"]', f'hub_token = "{secret}', f"hub_token = {secret}"):
        file.write_text(text)
        with pytest.raises(UsageError) as caught:
            load_settings(file, {})
        shown += str(caught.value) + repr(caught.value.__cause__)
    assert secret not in shown


def test_a_host_takes_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, scheme and context that were set hold where none is named."""
    config_path().write_text('model = "from-the-file"\n')
    with pytest.raises(UsageError, match="from-the-file"):
        Host().target()
    monkeypatch.setenv("QAK_MODEL", "from-the-environment")
    with pytest.raises(UsageError, match="from-the-environment"):
        Host().target()
