"""What a check of `rl-think doctor` is: a small function of a case that yields findings; here they are run."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar

from rl_think_ext.errors import UserError, redact

State = Literal["ok", "warn", "broken", "absent", "unchecked"]
T = TypeVar("T")
# What to do about a check that another one's failure has blocked.
MEND_FIRST = "Mend that first."


@dataclass(frozen=True)
class Finding:
    """One line of the examination: a sentence on what was found, and one on what to do where something is to be done.

    "absent" is an optional part that is not there, "unchecked" what could not be looked at; only "broken" fails.
    """

    state: State
    name: str
    found: str
    todo: str = ""
    trace: str = ""
    group: str = ""


@dataclass
class Case:
    """What is examined: this machine, and the YAML file of a run where one is given."""

    path: str | None = None
    made: dict[str, Any] = field(default_factory=dict)
    offline: bool = False  # whether the user's own environment forbids downloads


class Check(NamedTuple):
    """A check in its place; `todo` is what to do when it raises."""

    group: str
    name: str
    function: Callable[[Case], Iterator[Finding]]
    todo: str


class BlockedError(Exception):
    """What a check needs has failed in another check, which has said so."""


def once(what: str) -> Callable[[Callable[[Case], T]], Callable[[Case], T]]:
    """Make a function of a case be computed once; whoever asks after it failed gets a BlockedError."""

    def decorate(function: Callable[[Case], T]) -> Callable[[Case], T]:
        @wraps(function)
        def ask(case: Case) -> T:
            if what in case.made:
                if isinstance(case.made[what], BaseException):
                    raise BlockedError(what)
                value: T = case.made[what]
                return value
            try:
                case.made[what] = function(case)
            except BaseException as error:
                case.made[what] = error
                raise
            return ask(case)

        return ask

    return decorate


def examine(case: Case, checks: Sequence[Check]) -> list[Finding]:
    """Run checks in their order; one that raises is a finding, and the others go on. Secrets are left out."""
    found = []
    for check in checks:
        for finding in _findings(case, check):
            said, todo, trace = map(redact, (finding.found, finding.todo, finding.trace))
            found.append(replace(finding, group=check.group, found=said, todo=todo, trace=trace))
    return found


def _findings(case: Case, check: Check) -> Iterator[Finding]:
    try:
        yield from check.function(case)
    except BlockedError as error:
        yield Finding("unchecked", check.name, f"Not looked at, because {error} is not usable.", MEND_FIRST)
    except UserError as error:
        yield Finding("broken", check.name, _sentence(str(error)), check.todo)
    # A plugin or a library may raise anything, and may call sys.exit: the examination goes on.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        yield failure(check.name, error, check.todo)


def failure(name: str, error: BaseException, todo: str, what: str = "") -> Finding:
    """A finding out of an exception that is not ours, with its trace."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    trace = "".join(traceback.format_exception(error)).strip()
    return Finding("broken", name, _sentence(f"{what}{said}"), todo, trace)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


@contextmanager
def environment(**extra: str) -> Iterator[None]:
    """Environment variables for the time of an examination; whatever it changes is put back."""
    saved = dict(os.environ)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no remarks of transformers between the findings."""
    try:
        from transformers.utils import logging
    except Exception:  # noqa: BLE001 - a finding of its own
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
