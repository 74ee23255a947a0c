"""Runs pytest in forks of a process that has imported what is slow to import; one JSON line in, one status out.

`run.py` starts it, with the modules to import as arguments. A request is {"tree", "path", "args", "log", "timeout"}:
pytest runs in `tree`, imports from `path` first, writes to `log`. The answer is its exit status, or null after a
time-out. The package under test must not be among what was imported here: every fork has to take its own tree's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from typing import Any

PACKAGE = "rl_think_ext"


def child(request: dict[str, Any]) -> int:
    """In the fork: a session and a log of its own, then pytest as if it had been started there."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["tree"])
    sys.path[:0] = request["path"]
    os.environ["PYTHONPATH"] = os.pathsep.join([*request["path"], os.environ.get("PYTHONPATH", "")])
    os.environ |= {"PWD": request["tree"], "GIT_CEILING_DIRECTORIES": os.path.dirname(request["tree"])}
    sys.argv = ["pytest", *request["args"]]
    importlib.invalidate_caches()
    import pytest

    return int(pytest.main(request["args"]))


def run(request: dict[str, Any]) -> int | None:
    """The exit status of one pytest, or None when it took too long; nothing of it is left behind."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = child(request)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            # Not sys.exit: what the parent registered at exit is the parent's.
            os._exit(status)
    end = time.monotonic() + request["timeout"]
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it is imported is no answer
    # verl would import the package, as its plugin; that is the tests' own affair.
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError, AttributeError):
            module, _, attribute = name.partition(":")
            found = importlib.import_module(module)
            for part in filter(None, attribute.split(",")):
                getattr(found, part)
    del os.environ["VERL_USE_EXTERNAL_PLUGINS"]
    assert PACKAGE not in sys.modules, f"{PACKAGE} was imported ahead of its mutants"
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
