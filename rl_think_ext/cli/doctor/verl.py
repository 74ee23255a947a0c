"""verl: its version, whether it will load our plugin, what of ours it then knows, what TRL must be hidden from it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from types import ModuleType

from rl_think_ext.cli.doctor.case import Case, Finding
from rl_think_ext.cli.doctor.place import PACKAGE, version

_NAMES = "verl's names"
_POINT, _POLICY = "rl_think", "VERL_USE_EXTERNAL_PLUGINS"


def check_verl(case: Case) -> Iterator[Finding]:
    """verl against the tested version (F43), and every name of ours that it should know (F44).

    A file is one of TRL's runs: then the registries, which take seconds to import, are left alone.
    """
    number = version("verl")
    if number is None:
        yield Finding("absent", "verl", "verl is not there.", f"To train with it: pip install '{PACKAGE}[verl]'.")
        return
    with quiet():
        plugin = import_module(f"{PACKAGE}.verl.plugin")
        if number != plugin.TESTED:
            near = f"verl {number} is supported, but {plugin.TESTED} is the tested version"
            said = plugin.check_version(number) or near
            yield Finding("warn", "verl", f"{said}.", f"pip install 'verl=={plugin.TESTED}'")
        else:
            yield Finding("ok", "verl", f"verl {number} is the tested version.")
        if case.path is None:
            yield from _names(plugin)
            yield _trl(plugin)


def _names(plugin: ModuleType) -> Iterator[Finding]:
    """What verl's registries hold; what could not be imported, with the trace that verl would swallow."""
    names = plugin.report()
    failed = dict(text.split("\n", 1) for text in plugin.FAILURES)
    for what, trace in failed.items():
        todo = f"Mend what the trace's last line names, or install it anew: pip install '{PACKAGE}[verl]'."
        yield Finding("broken", _NAMES, f"{what} cannot be used under verl.", todo, trace.strip())
    if failed:
        return
    held = "; ".join(f"{kind} {', '.join(found)}" for kind, found in names.items())
    reason, todo = _not_loaded()
    if reason:
        yield Finding("warn", _NAMES, f"{reason}: verl will not know the {held}.", todo)
    else:
        yield Finding("ok", _NAMES, f"verl knows the {held}.")


def _not_loaded() -> tuple[str, str]:
    """Why verl will not load the plugin, and what to do; nothing where it will."""
    if not any(point.name == _POINT for point in metadata.entry_points(group="verl.plugins")):
        return f"The entry point {_POINT} is not installed", f"Install {PACKAGE} anew: pip install '{PACKAGE}[verl]'."
    policy = os.environ.get(_POLICY, "auto").strip().lower()
    if policy != "auto" and _POINT not in {name.strip() for name in policy.split(",")}:
        return f"{_POLICY}={policy} leaves {_POINT} out", f"Add {_POINT} to {_POLICY}, or take the variable out."
    return "", ""


def _trl(plugin: ModuleType) -> Finding:
    found = "What verl imports of TRL, if TRL is installed, is there."
    if plugin.trl_lacks_value_head():
        found = f"verl looks for a part of TRL that this TRL has no more; the plugin of {PACKAGE} keeps verl from it."
    return Finding("ok", "verl and trl", found)


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks of verl's on engines and platforms that are not there; what is broken is a finding."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
