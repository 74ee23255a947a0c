"""What the examination says of runs of RPT, VeriFree and RLPR: settings, keys and model are looked at, rows are not."""

from __future__ import annotations

from collections.abc import Iterator

from rl_think_ext.cli.doctor.case import Case, Finding
from rl_think_ext.cli.doctor.config import file
from rl_think_ext.errors import UserError

METHODS = ("rpt", "verifree", "rlpr")


def check_run(case: Case) -> Iterator[Finding]:
    """Say that tags, stops, dataset and rows were not looked at."""
    yield Finding(
        "unchecked",
        "run",
        f"Of {file(case).method} tags, stops, dataset and rows are looked at only when training starts.",
        f"rl-think train --config {case.path} --max_steps 1 --save_strategy no",
    )


def sample(case: Case, number: int) -> None:
    """There is no --live for these.

    Raises:
        UserError: always.
    """
    raise UserError(f"--live knows rlp, rlpt and rlmt; {case.path} is a run of {file(case).method}")
