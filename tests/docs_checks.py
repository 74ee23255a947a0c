"""What can be known of a page's block without running it: names, flags, keys, extras, files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from docs_runner import PROGRAMS, ROOT, Block, Command, cells_of, commands, rule_of

from rl_think_ext import cli, settings
from rl_think_ext.cli.train import METHODS, method_of


def starts_a_run(block: Block) -> bool:
    """Whether a YAML block is for a trainer; otherwise it holds settings of the method alone."""
    if block.language != "yaml":
        return False
    try:
        keys = set(yaml.safe_load(block.text) or {})
    except (yaml.YAMLError, TypeError):
        return False  # check_block says what is wrong with it
    return not keys <= {*METHODS, *(name for kind in METHODS.values() for name in _names(kind))} and keys != {
        "rl_think"
    }


def check_block(block: Block, rules: Sequence[Command]) -> None:
    """Raise what is wrong with a block."""
    if block.language == "sh":
        for words in commands(block):
            rule_of(words, rules, block.name)
            check_words(words, block.name)
    elif block.language == "yaml":
        check_yaml(settings.read_yaml(block.text, block.name), block)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "python" and ">>>" not in block.text:
        compile(block.text, block.name, "exec")


def check_words(words: Sequence[str], where: str) -> None:
    """The command, its target, module or file, and its flags exist."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    program, first = words[0], words[1] if len(words) > 1 else ""
    assert program in PROGRAMS, f"{where}: {program} is none of {', '.join(PROGRAMS)}"
    if program == "rl-think" and not first.isupper():
        listed = re.split(r" \| ", " ".join(words[1:])) if "|" in words else [first]
        assert not set(listed) - {*cli.COMMANDS, "--help", "--version"}, f"{where}: there is no such command"
        check_flags(words[1:], where)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert first in targets, f"{where}: the Makefile has no target {first}"
    elif program == "pip":
        check_install(words[2:], where)
    elif program == "ray":
        check_ray(words[1:], where)
    elif program == "trl":
        assert first in ("grpo", "sft"), f"{where}: trl has other commands for this, grpo and sft"
    elif "-m" in words:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module), f"{where}: there is no module {module}"
    elif first.endswith(".py") and program == "python":
        assert (ROOT / first).exists(), f"{where}: there is no {first}"


def check_flags(words: Sequence[str], where: str) -> None:
    """Every flag stands in the command's own help; those of train are TRL's, and known when it runs."""
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    if not given or words[0] in ("train", *given):
        return
    shown = help_of(tuple(words[:2] if words[0] in ("data", "judge") else words[:1]))
    for flag in given:
        assert re.search(rf"{flag}\b(?!-)", shown), f"{where}: `rl-think {words[0]}` has no flag {flag}"


@cache
def help_of(words: tuple[str, ...]) -> str:
    """What a command says about itself."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return shown.getvalue()


# What comes on top of the set for GPUs (docs/verl.md), and what it is built with.
ON_TOP = {"flash-attn", "wheel"}


def check_install(words: Sequence[str], where: str) -> None:
    """Every requirement is one of ours or of the set for GPUs, and every extra exists; nothing is downloaded."""
    from gpu_set import PINS, canonical, read_pins
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {Requirement(line).name for line in sum(extras.values(), project["dependencies"])} | {project["name"]}
    known |= read_pins(PINS).keys() | ON_TOP
    for before, word in zip(["", *words], words, strict=False):
        if before == "-c":
            assert (ROOT / word).exists(), f"{where}: there is no {word}"
        elif not word.startswith("-"):
            asked = Requirement(re.sub(r"^\.(?=\[|$)", project["name"], word))
            assert {asked.name, canonical(asked.name)} & known, (
                f"{where}: {asked.name} is no dependency of this project"
            )
            own = asked.name == project["name"]
            there = extras.keys() if own or not asked.extras else extras_of(asked.name)
            assert asked.extras <= set(there), f"{where}: there is no extra {sorted(asked.extras)}"


def extras_of(name: str) -> list[str]:
    """The extras of a distribution that is installed."""
    return metadata.metadata(name).get_all("Provides-Extra") or []


def check_ray(words: Sequence[str], where: str) -> None:
    """The command of Ray and its flags exist."""
    from ray.scripts.scripts import cli as ray

    assert words[0] in ray.commands, f"{where}: ray has no command {words[0]}"
    known = {name for option in ray.commands[words[0]].params for name in option.opts}
    for word in words[1:]:
        flag = word.partition("=")[0]
        assert not flag.startswith("--") or flag in known, f"{where}: `ray {words[0]}` has no flag {flag}"


def check_links(page: Path) -> None:
    """Every link and picture that is no address lies where the page says."""
    text = "\n".join(cells_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target} leads nowhere"


def check_yaml(mapping: Mapping[str, Any], block: Block) -> None:
    """Every key is one of the trainer's or of the method's, and the method takes the values."""
    if starts_a_run(block):
        inner = mapping.get("rl_think", {})
        stock = block.text.startswith("# trl grpo") or any("rl_think_ext" in n for n in mapping.get("reward_funcs", []))
        known = trainer_keys(stock and "rl_think" not in mapping, *kind_of(inner))
        settings.check_keys(mapping, ["env", "rl_think", *known], block.name)
    else:
        inner = mapping.get("rl_think", mapping if set(mapping) <= set(METHODS) else {of_settings(mapping): mapping})
    method_of(inner, block.name)


def of_settings(mapping: Mapping[str, Any]) -> str:
    """The method that has the most of these settings."""
    return max(METHODS, key=lambda name: len(set(mapping) & set(_names(METHODS[name]))))


def kind_of(inner: Mapping[str, Any]) -> tuple[str, str]:
    """Method and trainer of a `rl_think:` block."""
    return next((name for name in METHODS if name in inner), "rlp"), str(inner.get("trainer", "grpo"))


@cache
def trainer_keys(stock: bool, method: str, trainer: str) -> tuple[str, ...]:
    """The keys of `trl grpo`, or of `rl-think train`, which has more."""
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig, ScriptArguments
    from trl.scripts.grpo import GRPOScriptArguments

    from rl_think_ext.trl import RLMTGRPOConfig, ThinkGRPOConfig
    from rl_think_ext.trl.rlmt_supervised import ThinkDPOConfig, ThinkSFTConfig

    own = {
        "sft": ThinkSFTConfig,
        "dpo": ThinkDPOConfig,
        "grpo": RLMTGRPOConfig if method in ("rlmt", "rlpt") else ThinkGRPOConfig,
    }
    script = GRPOScriptArguments if trainer == "grpo" else ScriptArguments
    kinds = (script, GRPOConfig if stock else own[trainer], ModelConfig, DatasetMixtureConfig)
    return tuple(name for kind in kinds for name in _names(kind))


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
