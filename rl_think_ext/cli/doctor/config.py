"""The YAML file of a run as the trainer would read it: which command, the method's settings, TRL's arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, NamedTuple

from rl_think_ext import settings
from rl_think_ext.cli.doctor.case import BlockedError, Case, Finding, failure, once
from rl_think_ext.cli.doctor.trainers import trl
from rl_think_ext.cli.train import METHODS, TRAINERS, method_of
from rl_think_ext.errors import UserError

# The rewards by the names that a file uses, and the method of each.
REWARDS = {f"rl_think_ext.trl.{name}": name for name in METHODS}
REWARD = "rl_think_ext.trl.rlp"
# argparse speaks of options, the file has keys.
_ARGUMENT, _KEY = r"argument --(\w+)\S*:", r"`\1`:"


class File(NamedTuple):
    """A YAML file: TRL's keys, the `rl_think:` block apart, the variables of `env:`, and the command it is for.

    `method` is a name of METHODS, `trainer` what the block says: nobody has looked whether there is such a one.
    """

    path: str
    keys: dict[str, Any]
    block: Any
    env: dict[str, str]
    command: Literal["rl-think train", "trl grpo"]
    method: str = "rlp"
    trainer: str = "grpo"

    @property
    def stock(self) -> bool:
        """Whether TRL's own GRPOTrainer would run."""
        return self.command == "trl grpo"


class Arguments(NamedTuple):
    """TRL's dataclasses, filled."""

    script: Any
    args: Any
    model: Any


@once("the YAML file")
def file(case: Case) -> File:
    """The file, taken apart.

    Raises:
        UserError: not readable, or `env:` is no mapping.
    """
    assert case.path is not None
    keys = settings.read_file(case.path)
    rewards, env = keys.get("reward_funcs") or [], keys.pop("env", None) or {}
    if not isinstance(env, Mapping):
        raise UserError(f"{case.path}: `env:` holds {env!r}; expected `NAME: value` lines")
    named = [REWARDS[name] for name in ([rewards] if isinstance(rewards, str) else rewards) if name in REWARDS]
    # The variable is read by nothing but the stock command; the reward may be a subclass under a name of its own.
    stock = "rl_think" not in keys and (named or settings.ENVIRONMENT in env)
    block = keys.pop("rl_think", None) or {}
    names = {str(name): str(value) for name, value in env.items()}
    if stock:
        return File(case.path, keys, block, names, "trl grpo", named[0] if named else _method_of_variable(names))
    given = block if isinstance(block, Mapping) else {}
    method = next((name for name in METHODS if name in given and name != "rlp"), "rlp")
    return File(case.path, keys, block, names, "rl-think train", method, str(given.get("trainer", "grpo")))


def _method_of_variable(env: Mapping[str, str]) -> str:
    """The method whose settings RL_THINK_CONFIG holds, where the reward's name does not say it."""
    value = env.get(settings.ENVIRONMENT, "")
    try:
        block = settings.read_file(value) if os.path.isfile(value) else settings.read_yaml(value, value)
    except UserError:
        return "rlp"  # whoever needs the settings names the fault
    return next((name for name in METHODS if name in block), "rlp")


@once("the block of settings")
def method(case: Case) -> tuple[Any, dict[str, Any], str]:
    """The method's settings, those that were given, and where they were given.

    Raises:
        UserError: a key, type or value that does not fit, or a file that is not there.
    """
    it = file(case)
    if it.stock:
        given, where = settings.from_environment(it.method)
        return settings.build(METHODS[it.method], given, where), given, where
    _, config = method_of(it.block, it.path)
    return config, dict(it.block.get(it.method) or {}), f"{it.path}, rl_think: {it.method}"


@once("the set of TRL's arguments")
def arguments(case: Case) -> Arguments:
    """The keys through TRL's own parser.

    Raises:
        UserError: an unknown key, or a value that TRL does not take.
    """
    it = file(case)
    if it.trainer not in (TRAINERS if it.method == "rlmt" else TRAINERS[:1]):
        raise BlockedError("`trainer:`")
    module = trl(case)
    script, config = _kinds(module, it)
    kinds = (script, config, module.ModelConfig, module.DatasetMixtureConfig)
    known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    if it.stock and not known >= it.keys.keys():
        known |= _launch_keys()
    settings.check_keys(it.keys, known, it.path)
    parser = module.TrlParser(kinds)
    parser.set_defaults_with_config(**it.keys)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = parser.parse_args_into_dataclasses(args=[])
    except SystemExit as error:
        problem = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"{it.path}: {re.sub(_ARGUMENT, _KEY, problem)}") from error
    except (ValueError, TypeError) as error:
        said_so = str(error).strip().splitlines()[0]
        if "bf16" in said_so:
            said_so = "bf16 (TRL's default) needs a GPU, and torch sees none: say `bf16: false`, and `use_cpu: true`"
        raise UserError(f"{it.path}: {said_so}") from error
    return Arguments(*parsed[:3])


def _kinds(module: Any, it: File) -> tuple[Any, Any]:
    """The script's and the trainer's dataclasses that the command would fill."""
    # By name: whether they can be imported is one of the questions, and only the door may depend on trl.
    if it.trainer != "grpo":
        supervised = import_module("rl_think_ext.trl.rlmt_supervised")
        return module.ScriptArguments, supervised.ThinkSFTConfig if it.trainer == "sft" else supervised.ThinkDPOConfig
    script, ours = import_module("trl.scripts.grpo").GRPOScriptArguments, import_module("rl_think_ext.trl")
    if it.stock:
        return script, module.GRPOConfig
    own = {"rlmt": "RLMTGRPOConfig", "rlpt": "RLPTGRPOConfig"}
    return script, getattr(ours, own.get(it.method, "ThinkGRPOConfig"))


def _launch_keys() -> set[str]:
    """What `trl grpo` hands on to accelerate's launcher."""
    parser = import_module("accelerate.commands.launch").launch_command_parser()
    return {action.dest for action in parser._actions} | {"accelerate_config"}


def check_file(case: Case) -> Iterator[Finding]:
    """Which command the file is for; its variables hold from here on."""
    it = file(case)
    os.environ.update(it.env)
    named = f"; variables: {', '.join(it.env)}" if it.env else ""
    yield Finding("ok", "file", f"{it.path} is for `{it.command}`; keys for TRL: {len(it.keys)}{named}.")
    rewards = it.keys.get("reward_funcs") or []
    if not it.stock and not it.block and REWARD not in rewards:
        found = f"{it.path} has no `rl_think:` block and no reward {REWARD}: `trl grpo` would train without RLP."
        todo = f"Start it with `rl-think train`, or add `reward_funcs: [{REWARD}]` for `trl grpo`."
        yield Finding("warn", "file", found, todo)
    if not it.stock and os.environ.get(settings.ENVIRONMENT, "").strip():
        found = f"{settings.ENVIRONMENT} is set, and `rl-think train` does not read it."
        yield Finding("warn", "file", found, "Put the settings into the block `rl_think:`, or use `trl grpo`.")


def check_method(case: Case) -> Iterator[Finding]:
    """Every setting with its value, those that were given first, and where they come from."""
    config, given, where = method(case)
    shown = {name: value for name, value in vars(config).items() if name in given}
    rest = {name: value for name, value in vars(config).items() if name not in given}
    mark = settings.fingerprint(config)
    nothing = f"{settings.ENVIRONMENT} is not set" if where == "defaults" else f"nothing in {where}"
    from_where = f"From {where}: {_listed(shown)}. By default: " if shown else f"All by default ({nothing}): "
    yield Finding("ok", f"{file(case).method.upper()} settings", f"{from_where}{_listed(rest)}. Fingerprint {mark}.")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def check_arguments(case: Case) -> Iterator[Finding]:
    """TRL's arguments: what is not RLP is refused, what differs from it is warned about."""
    args = arguments(case)
    missing = [
        name
        for name, value in (
            ("model_name_or_path", args.model.model_name_or_path),
            ("dataset_name", args.script.dataset_name),
        )
        if not value
    ]
    for name in missing:
        yield Finding("broken", name, f"{file(case).path} does not say `{name}:`.", f"Add `{name}: …` to it.")
    if file(case).method == "rlp":
        from rl_think_ext.trl import checks

        for text in checks.check_settings(args.args):
            key = text.partition(":")[0].partition(" ")[0]
            yield Finding("warn", key, f"{text}.", f"Change `{key}:` in {file(case).path}, or know why you want it.")
    if not missing:
        kind = type(args.args).__name__
        found = f"All are known and none is refused; what {file(case).path} does not say is a default of {kind}."
        yield Finding("ok", "TRL's keys", found)


def check_other_rewards(case: Case) -> Iterator[Finding]:
    """Rewards beside the gain can be imported, and stand where an unscorable sample is no 0."""
    stock, rewards = file(case).stock, reward_names(case)
    gains = [name for name in rewards if name == REWARD or (stock and _is_gain(name))]
    names = [name for name in rewards if name not in gains]
    others = names + gains[1:]
    if not stock:
        from rl_think_ext.trl.launch import check_methods

        check_methods(rewards, file(case).method)
    if stock and not gains:
        found = f"Of `reward_funcs:` {', '.join(rewards) or 'nothing'} none that can be imported is RLP's gain."
        yield Finding("broken", "reward_funcs", found, f"Name {REWARD}, or a subclass's object, for `trl grpo`.")
    elif stock and others:
        found = f"Beside {', '.join(others)} the stock trainer would count an unscorable thought as a gain of 0."
        yield Finding("broken", "reward_funcs", found, f"Use `rl-think train`, or {gains[0]} alone.")
    elif stock and gains != [REWARD]:
        yield Finding("ok", "reward_funcs", f"The reward {gains[0]} is built on RLP's gain and can be imported.")
    yield from check_imports(names)


def reward_names(case: Case) -> list[str]:
    """The names under `reward_funcs:`."""
    given = getattr(arguments(case).script, "reward_funcs", None) or []
    return [given] if isinstance(given, str) else list(given)


def check_imports(names: Iterable[str]) -> Iterator[Finding]:
    """Whether each further reward can be imported."""
    for name in names:
        try:
            reward(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            yield failure("reward_funcs", error, "Correct `reward_funcs:`.", f"The reward {name} raises ")
        else:
            yield Finding("ok", "reward_funcs", f"The further reward {name} can be imported.")


def reward(name: str) -> Any:
    """What `reward_funcs:` names; as the commands do, modules of the current folder are found too."""
    module, _, attribute = name.rpartition(".")
    if module and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return getattr(import_module(module or "trl.rewards"), attribute)


def _is_gain(name: str) -> bool:
    """Whether a reward is RLP's or built on it; one that cannot be imported is neither, and is said to be broken."""
    from rl_think_ext.trl.rlp_reward import InformationGain

    try:
        return isinstance(reward(name), InformationGain)
    except (Exception, SystemExit):  # noqa: BLE001
        return False
