"""Which metrics are drawn together, what each figure is called, and what to look for in it: what all methods share.

A method's own figures stand in specs_rlp.py, specs_rlmt.py and specs_rlpt.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """A figure: its series by metric and label, a unit, what to look for, and whether 0 or 1 bound it.

    With `every`, a prefix and a suffix, its series are all metrics between them, in the log's names; `occurring` leaves
    out those that were never above 0. `series` is then drawn where there is none, `without` never.
    """

    key: str
    title: str
    series: tuple[tuple[str, str], ...]
    look: str
    unit: str = ""
    zero: bool = False
    share: bool = False
    every: tuple[str, str] | None = None
    occurring: bool = False
    without: tuple[str, ...] = ()


ENTROPY = Spec(
    "entropy",
    "Entropy of sampling",
    (("entropy", "per token"),),
    "Falls as the policy gets surer. At zero there is nothing left to choose from.",
    "nats",
    zero=True,
)
LOSS = Spec("loss", "Loss", (("loss", "loss"),), "Near zero by construction; only jumps tell something.", zero=True)
GRADIENT = Spec(
    "grad", "Norm of the gradient", (("grad_norm", "before clipping"),), "Spikes ask for a lower learning rate."
)
RATE = Spec("rate", "Learning rate", (("learning_rate", "learning rate"),), "The schedule as it was run.", zero=True)
REWARDS = Spec(
    "rewards",
    "Other rewards",
    (),
    "Means of the reward functions beside the method's own.",
    every=("rewards/", "/mean"),
    without=tuple(f"rewards/{name}/mean" for name in ("rlp", "rlmt", "rlpt", "verifree", "rlpr", "rpt")),
)
