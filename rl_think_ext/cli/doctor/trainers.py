"""The trainers and what ties this package to them: TRL's names, the rewards, verl's plugins, the data extra."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module, metadata
from typing import Any

from rl_think_ext.cli.doctor.case import BlockedError, Case, Finding, failure, once
from rl_think_ext.cli.doctor.place import PACKAGE, version

_DATA = ("datasets", "pyarrow", "nltk", "tqdm")
REWARDS = ("rlp", "rlmt", "rlpt", "rpt", "verifree", "rlpr")


@once("trl")
def trl(case: Case) -> Any:
    """The module, with its trainer imported too.

    Raises:
        BlockedError: not installed; anything that its import raises.
    """
    if version("trl") is None:
        raise BlockedError("trl")
    module = import_module("trl")
    module.GRPOTrainer  # noqa: B018 - made when it is first asked for
    return module


def check_trl(case: Case) -> Iterator[Finding]:
    """TRL is there, can be imported, and has the names that the door uses."""
    number = version("trl")
    if number is None:
        state, todo = ("broken" if case.path else "absent"), f"pip install '{PACKAGE}[trl]'"
        yield Finding(state, "trl", "trl is not there: `rl-think train` and `trl grpo` cannot run.", todo)  # type: ignore[arg-type]
        return
    trl(case)
    from rl_think_ext.trl import host

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        host.check_host()
    for warning in caught:
        yield Finding("warn", "trl", f"{warning.message}.", f"pip install 'trl~={host.TESTED}.0'")
    if not caught:
        yield Finding("ok", "trl", f"trl {number} has every private name that {PACKAGE}.trl uses.")


def check_rewards(case: Case) -> Iterator[Finding]:
    """The rewards can be imported by the names that a YAML file uses."""
    trl(case)
    for name in REWARDS:
        getattr(import_module(f"{PACKAGE}.trl"), name)
    names = ", ".join(f"{PACKAGE}.trl.{name}" for name in REWARDS)
    yield Finding("ok", "rewards", f"`reward_funcs:` can name {names}.")


def check_plugins(case: Case) -> Iterator[Finding]:
    """Every plugin that verl would load at its start; one that raises would end the run there (F44)."""
    points = sorted(metadata.entry_points(group="verl.plugins"), key=lambda point: point.name)
    for point in points:
        try:
            point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001
            todo = (
                f"Mend or uninstall the distribution that brings it ({point.dist.name if point.dist else 'unknown'})."
            )
            yield failure("plugins", error, todo, f"The plugin `{point.name}` ({point.value}) raises ")
        else:
            yield Finding("ok", "plugins", f"The plugin `{point.name}` ({point.value}) can be imported.")
    if not points:
        yield Finding("absent", "plugins", "No entry point in the group verl.plugins.")


def check_data(case: Case) -> Iterator[Finding]:
    """What `rl-think data` needs."""
    missing = [name for name in _DATA if version(name) is None]
    if missing:
        found = f"{' and '.join(missing)} cannot be imported: `rl-think data` cannot run."
        yield Finding("absent", "data extra", found, f"To build datasets: pip install '{PACKAGE}[data]'.")
    else:
        yield Finding("ok", "data extra", f"{', '.join(_DATA)} are there for `rl-think data`.")
