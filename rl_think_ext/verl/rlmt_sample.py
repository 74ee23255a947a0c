"""What the reward workers say of a sample of RLMT."""

from __future__ import annotations

from rl_think_ext.methods.rlmt import STATUSES
from rl_think_ext.scoring.preference import FIELDS, Preferences
from rl_think_ext.verl.sample_info import Info, SampleForm

FORM = SampleForm(
    method="rlmt",
    loop="rl_think_chat",
    fields=FIELDS,
    names={"status": STATUSES},
    texts=("thought", "answer"),
    sums=("seconds", "num_asked", "num_cached"),
    largest=("noise",),
)


def infos_of(found: Preferences) -> list[Info]:
    """What is said of each output of one call of the reward model."""
    texts = [{"thought": part.thought, "answer": part.answer} for part in found.parts]
    return FORM.infos(found.table, texts, found.scores, found.stats)
