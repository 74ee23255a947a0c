"""What verl loads at its start, by the entry point `verl.plugins`: our names join its registries as these appear.

verl imports its plugins in every process and swallows what they raise, so nothing heavy is imported here: each
registration waits until the module with its registry has been imported, and brings names, not objects. What cannot be
imported then raises at its first use, and is kept in `FAILURES` with its trace (F44).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.settings import ENVIRONMENT
from rl_think_ext.verl import TESTED

logger = logging.getLogger(__name__)

FAILURES: list[str] = []
TRAINERS = {
    "rlp": "rl_think_ext.verl.rlp_trainer.RLPTrainer",
    "rlmt": "rl_think_ext.verl.rlmt_trainer.RLMTTrainer",
    "rlpt": "rl_think_ext.verl.rlpt_trainer.RLPTTrainer",
}
LOOPS = {
    "rl_think_thought": "rl_think_ext.verl.thought_loop.ThoughtLoop",
    "rl_think_chat": "rl_think_ext.verl.chat_loop.ChatLoop",
    "rl_think_prediction": "rl_think_ext.verl.prediction_loop.PredictionLoop",
}
MANAGERS = {
    "rlmt": "rl_think_ext.verl.rlmt_reward.RLMTRewardManager",
    "rlpt": "rl_think_ext.verl.rlpt_reward.RLPTRewardManager",
}
ESTIMATORS = {"rlp": "rl_think_ext.verl.advantage.group_advantages"}


def verl_version() -> str:
    """The number of the verl that is imported, also of one that was never installed."""
    try:
        return version("verl")
    except PackageNotFoundError:
        return str(importlib.import_module("verl").__version__)


def check_version(number: str) -> str | None:
    """A warning for a verl outside the tested range (F43), or None.

    >>> check_version("0.9.1") is None
    True
    """
    if number.split(".")[:2] == TESTED.split(".")[:2]:
        return None
    return f"verl {number} is not the tested {TESTED}: check the first steps' numbers, or install verl=={TESTED}"


def hide_trl() -> bool:
    """Keep verl from importing TRL's model with a value head where TRL has none any more; whether that was needed.

    verl 0.9.1 imports it at the start of every actor as soon as TRL is installed, and TRL 1.16 took it away.
    """
    if not trl_lacks_value_head():
        return False
    from verl.utils import import_utils

    if import_utils.is_trl_available is not _no_trl:
        import_utils.is_trl_available = _no_trl
        for name in ("verl.models.transformers.monkey_patch", "verl.utils.model"):
            if name in sys.modules:
                sys.modules[name].is_trl_available = _no_trl  # type: ignore[attr-defined]
    return True


def trl_lacks_value_head() -> bool:
    """Whether TRL is installed without a module that verl imports; TRL itself is not imported."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return False
    root = Path(spec.submodule_search_locations[0])
    places = ("experimental/ppo", "experimental/ppo.py", "models/modeling_value_head.py")
    return not any((root / place).exists() for place in places)


def _no_trl() -> bool:
    return False


class Later:
    """What stands in verl's registries: the object behind a full name, imported when it is first used.

    At once would be too early: the modules of ours import verl's, whose registries may only just be on their way.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def load(self) -> Any:
        """The object itself.

        Raises:
            UserError: it cannot be imported; with the trace, which verl would have swallowed (F44).
        """
        module, name = self.path.rsplit(".", 1)
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:
            _remember(self.path)
            raise UserError(f"{self.path} cannot be used under verl:\n{traceback.format_exc()}") from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.load(), name)


def _join(registry: Any, names: dict[str, str]) -> None:
    """Put names into a registry.

    Raises:
        UserError: something of somebody else's has one of them.
    """
    for name, path in names.items():
        found = registry.setdefault(name, Later(path))
        if not isinstance(found, Later):
            raise UserError(f"verl knows the name `{name}` as {found!r}: take that out, it would train something else")


def _trainers() -> None:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    _join(TRAINER_REGISTRY, TRAINERS)


def _managers() -> None:
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    _join(REWARD_MANAGER, MANAGERS)


def _estimators() -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    _join(ADV_ESTIMATOR_REGISTRY, ESTIMATORS)


def _loops() -> None:
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

    for name, path in LOOPS.items():
        _agent_loop_registry[name] = {"_target_": path}


def _environment() -> None:
    """verl gives Ray's processes an environment of its own: the settings' variable belongs there, too.

    Without it a driver on a cluster that was started before would not see it, and silently train with the defaults.
    """
    from verl.trainer import constants_ppo

    own = constants_ppo.get_ppo_ray_runtime_env
    if hasattr(own, "__wrapped__"):
        return

    @functools.wraps(own)
    def with_settings(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        value = os.environ.get(ENVIRONMENT, "").strip()
        if value:
            # A relative path means nothing where the driver runs.
            given = os.path.abspath(value) if os.path.isfile(value) else value
            found.setdefault("env_vars", {}).setdefault(ENVIRONMENT, given)
        return found

    constants_ppo.get_ppo_ray_runtime_env = with_settings


# A registry's module, and what is to be done as soon as it is there.
WAITING: dict[str, Callable[[], None]] = {
    "verl.trainer.constants_ppo": _environment,
    "verl.trainer.ppo.v1": _trainers,
    "verl.experimental.reward_loop.reward_manager": _managers,
    "verl.trainer.ppo.core_algos": _estimators,
    "verl.experimental.agent_loop.agent_loop": _loops,
}


def _remember(what: str) -> None:
    FAILURES.append(f"{what}\n{traceback.format_exc()}")
    logger.error("rl_think: cannot be used under verl; `rl-think doctor` says more: %s", FAILURES[-1])


class AfterImport:
    """A finder that finds nothing itself, but runs an action as soon as one of the awaited modules was imported."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self.waiting, self._looking = waiting, set[str]()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The spec that the other finders have, with a loader that runs the action at its end."""
        if name not in self.waiting or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is not None and spec.loader is not None:
            _run_behind(spec.loader, self.waiting[name])
        return spec


def _run_behind(loader: Any, action: Callable[[], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        _do(action)

    loader.exec_module = exec_module


def _do(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:  # noqa: BLE001 - verl would swallow it
        _remember(action.__name__)


def install() -> None:
    """Wait for verl's registries, and join those that are there already; a second call changes nothing (F43)."""
    _do(hide_trl)
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport(WAITING))
    for name, action in WAITING.items():
        if name in sys.modules:
            _do(action)


def register_all() -> None:
    """Import every registry of verl and everything of ours that stands in one; what fails is in FAILURES."""
    for name in WAITING:
        importlib.import_module(name)
    for path in (*TRAINERS.values(), *MANAGERS.values(), *ESTIMATORS.values(), *LOOPS.values()):
        with suppress(UserError):
            Later(path).load()


def report() -> dict[str, list[str]]:
    """What verl's registries hold of ours, by kind."""
    register_all()
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    kinds = {
        "trainers": (TRAINERS, TRAINER_REGISTRY),
        "reward managers": (MANAGERS, REWARD_MANAGER),
        "advantage estimators": (ESTIMATORS, ADV_ESTIMATOR_REGISTRY),
        "agent loops": (LOOPS, _agent_loop_registry),
    }
    return {kind: [name for name in own if name in registry] for kind, (own, registry) in kinds.items()}


install()
