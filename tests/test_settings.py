"""Settings: read safely, and every mistake names its place and the nearest key (F40)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.settings import ENVIRONMENT, build, check_keys, fingerprint, from_environment, read_file, read_yaml


def settings_of(value: str | None, patch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str]:
    patch.delenv(ENVIRONMENT, raising=False)
    if value is not None:
        patch.setenv(ENVIRONMENT, value)
    return from_environment("rlp")


def test_plain_yaml_becomes_the_dataclass() -> None:
    given_values = read_yaml("num_target_tokens: 4\nema_decay: 1\nbaseline: none\nfrozen_gain: false\n", "here")
    config = build(RLPConfig, given_values, "here")
    assert config == RLPConfig(num_target_tokens=4, ema_decay=1.0, baseline="none", frozen_gain=False)
    assert type(config.ema_decay) is float


@pytest.mark.parametrize(
    "source",
    [
        "a: !!python/object/apply:os.system ['touch {path}']",
        "a: !!python/object/new:os.system ['touch {path}']",
        'a: !!python/object/apply:builtins.eval [\'open("{path}", "w")\']',
        "!!python/object/apply:subprocess.Popen [['touch', '{path}']]",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
    ],
)
def test_f40_python_tags_are_refused_and_nothing_runs(source: str, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    with pytest.raises(UserError, match=r"^here, line 1: not plain YAML: could not determine a constructor"):
        read_yaml(source.replace("{path}", str(path)), "here")
    assert not path.exists()


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "${HOME}", "{{ 7 * 7 }}", "%(x)s", "$(id)", "2 ** 3"])
def test_f40_values_are_never_evaluated(text: str) -> None:
    assert read_yaml(f'a: "{text}"', "here") == {"a": text}
    with pytest.raises(UserError, match="`num_target_tokens` is a int, got"):
        build(RLPConfig, {"num_target_tokens": text}, "here")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a: [1, 2", "here, line 1: not plain YAML"),
        ("a: 1\n  b: 2\n c: :", "here, line 2: not plain YAML"),
        ("a: \x07", "here: not plain YAML"),
        ("? [1]\n: 2", "not plain YAML"),
        ("- a\n- b", "here: expected `key: value` lines, got list"),
        ("just words", "here: expected `key: value` lines, got str"),
        ("false", "here: expected `key: value` lines, got bool"),
        # The safe loader lets these through as ValueError and RecursionError.
        ("a: 2001-13-40", "here: not plain YAML"),
        ("a: 0b_", "here: not plain YAML"),
        ("[" * 1500, "here: not plain YAML"),
    ],
)
def test_f40_broken_yaml_names_its_place(source: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read_yaml(source, "here")
    assert problem in str(caught.value)


@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!?|>'\"\n a1_", max_size=30))
def test_f40_any_text_is_a_mapping_or_a_user_error(source: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(read_yaml(source, "here"), dict)


@pytest.mark.parametrize("source", ["", "# only a comment\n", "---\n", "null"])
def test_empty_yaml_is_no_settings(source: str) -> None:
    assert read_yaml(source, "here") == {}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"num_target_token": 1}, "here: unknown key `num_target_token`; did you mean `num_target_tokens`?"),
        ({"emadecay": 0.9}, "here: unknown key `emadecay`; did you mean `ema_decay`?"),
        ({"zzz": 1}, "here: unknown key `zzz`; known are aggregate, baseline,"),
        ({7: 1}, "here: unknown key `7`; known are"),
        ({"baseline": "emma"}, "here: `baseline` is one of ema, init, live, none, got 'emma'; did you mean `ema`?"),
        ({"baseline": None}, "here: `baseline` is one of ema, init, live, none, got None"),
        ({"baseline": ["ema"]}, "here: `baseline` is one of"),
        ({"num_target_tokens": True}, "here: `num_target_tokens` is a int, got True"),
        ({"num_target_tokens": 1.0}, "here: `num_target_tokens` is a int, got 1.0"),
        ({"num_target_tokens": "4"}, "here: `num_target_tokens` is a int, got '4'"),
        ({"num_target_tokens": None}, "here: `num_target_tokens` is a int, got None"),
        ({"ema_decay": True}, "here: `ema_decay` is a float, got True"),
        ({"ema_decay": "high"}, "here: `ema_decay` is a number, got 'high'"),
        ({"frozen_gain": 1}, "here: `frozen_gain` is a bool, got 1"),
        ({"frozen_gain": "no"}, "here: `frozen_gain` is a bool, got 'no'"),
        ({"num_target_tokens": 0}, "here: `num_target_tokens` is at least 1, got 0"),
        ({"max_tokens_per_batch": -5}, "here: `max_tokens_per_batch` is at least 1, got -5"),
        ({"max_failed_steps": 0}, "here: `max_failed_steps` is at least 1, got 0"),
        ({"ema_decay": 1.5}, "here: `ema_decay` is from 0 to 1, got 1.5"),
        ({"ema_decay": float("nan")}, "here: `ema_decay` is from 0 to 1, got nan"),
        ({"score_noise_share": -0.1}, "here: `score_noise_share` is from 0 to 1, got -0.1"),
        ({"discount": 0}, "here: `discount` is above 0 and at most 1, got 0.0"),
        ({"discount": float("nan")}, "here: `discount` is above 0 and at most 1, got nan"),
    ],
)
def test_f40_wrong_key_type_or_value_is_named(mapping: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(RLPConfig, mapping, "here")
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["a: 1\nb: 2\na: 3", "rlp:\n  baseline: ema\n  x: 1\n  baseline: live"])
def test_f40_a_key_given_twice_names_its_line(source: str) -> None:
    last = len(source.splitlines())
    with pytest.raises(UserError, match=rf"here, line {last}: the key `\w+` is given twice"):
        read_yaml(source, "here")


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    assert read_yaml("ema_decay: 1e-3", "here") == {"ema_decay": "1e-3"}
    assert build(RLPConfig, {"ema_decay": "1e-3"}, "here").ema_decay == 0.001


def test_optional_fields_take_none_and_their_type() -> None:
    @dataclasses.dataclass(frozen=True)
    class Small:
        width: int | None = 3

    # The annotation is looked up where the class stands, so it must not be a string here.
    Small.__annotations__["width"] = int | None
    assert build(Small, {"width": None}, "here") == Small(None)
    assert build(Small, {"width": 4}, "here") == Small(4)
    with pytest.raises(UserError, match="`width` is a int, got 'wide'"):
        build(Small, {"width": "wide"}, "here")


def test_without_the_variable_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(None, monkeypatch) == ({}, "defaults")
    assert settings_of("  \n", monkeypatch) == ({}, "defaults")


@pytest.mark.parametrize(
    "value",
    [
        "rlp: {num_target_tokens: 3}",
        "rlp:\n  num_target_tokens: 3",
        "{rlp: {num_target_tokens: 3}}",
        "\nrlp: {num_target_tokens: 3}\n",
    ],
)
def test_inline_yaml(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(value, monkeypatch) == ({"num_target_tokens": 3}, f"inline YAML in {ENVIRONMENT}")


def test_inline_yaml_on_one_line_longer_than_a_file_name(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "rlp: {num_target_tokens: 3, elicit: prefill" + " " * 5000 + "}"
    assert settings_of(value, monkeypatch)[0] == {"num_target_tokens": 3, "elicit": "prefill"}


def test_a_path_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("rlp:\n  ema_decay: 0.9\n")
    assert settings_of("mine.yaml", monkeypatch) == ({"ema_decay": 0.9}, "mine.yaml")
    # A file whose name looks like YAML is a file.
    (tmp_path / "rlp: x.yaml").write_text("rlp:\n  ema_decay: 0.5\n")
    assert settings_of("rlp: x.yaml", monkeypatch)[0] == {"ema_decay": 0.5}


@pytest.mark.parametrize("value", ["missing.yaml", "sub/missing.yaml", "~/x.yaml", "C:missing.yaml", "x" * 300])
def test_relative_path_that_is_not_there_names_what_was_tried(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        settings_of(value, monkeypatch)
    assert f"{ENVIRONMENT}={value}: no such file (tried {tmp_path / value})" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rlpp: {ema_decay: 1}", "inline YAML in RL_THINK_CONFIG: unknown key `rlpp`; did you mean `rlp`?"),
        ("ema_decay: 0.9", "unknown key `ema_decay`"),  # the block of the method is missing
        ("rlp: 3", "`rlp:` holds 3; expected `key: value` lines"),
        ("rlp: []", "`rlp:` holds []; expected"),
        ("rlp: false", "`rlp:` holds False; expected"),
        ("rlp: [ema", "inline YAML in RL_THINK_CONFIG, line 1: not plain YAML"),
    ],
)
def test_f40_mistakes_in_the_block_of_a_method(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        settings_of(value, monkeypatch)
    assert message in str(caught.value)


def test_block_without_content_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of("rlp:", monkeypatch)[0] == {}


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not read the settings file .*nothing\.yaml: No such file"):
        read_file(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match=r"could not read the settings file .*: Is a directory"):
        read_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: ü".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml is not UTF-8 text: .* at byte 3"):
        read_file(tmp_path / "latin.yaml")


def test_known_keys_pass() -> None:
    check_keys(["a", "b"], ["b", "a", "c"], "here")


def test_fingerprint_is_of_the_values() -> None:
    assert fingerprint(RLPConfig()) == fingerprint(build(RLPConfig, {"ema_decay": 0.999}, "elsewhere"))
    changes: tuple[dict[str, Any], ...] = ({}, {"ema_decay": 0.5}, {"closing": "unscorable"})
    marks = {fingerprint(dataclasses.replace(RLPConfig(), **change)) for change in changes}
    assert len(marks) == 3
    assert all(len(mark) == 12 and int(mark, 16) >= 0 for mark in marks)


def test_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_of("rlp: {ema_decay: 1}", monkeypatch)
    assert os.environ[ENVIRONMENT] == "rlp: {ema_decay: 1}"
