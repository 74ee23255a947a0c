"""What the reward workers say of a sample of RLPT, and how a step's samples are paid for it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from rl_think_ext.data.prediction_rows import kept_texts
from rl_think_ext.methods.groups import in_groups, one_score_each
from rl_think_ext.methods.rlpt import STATUSES, TASKS, Reward
from rl_think_ext.scoring.judge import STATS
from rl_think_ext.scoring.prediction import FIELDS, Predictions, Segment, column
from rl_think_ext.scoring.prediction_step import LARGEST, MEANS, judge_metrics, step_metrics
from rl_think_ext.scoring.preference import Output
from rl_think_ext.verl.sample_info import Info, SampleForm, Settled, numbers, scores_of

# Calls of the judge follow one another here: their seconds are added.
_LARGEST = tuple(name for name in LARGEST if name != "seconds")
FORM = SampleForm(
    method="rlpt",
    loop="rl_think_prediction",
    fields=FIELDS,
    names={"task": TASKS, "status": STATUSES},
    # All that it takes to judge a dump again (`rl-think replay`).
    texts=("id", "prediction", "reference", "segment_ends", "context", "next_segment", "said"),
    sums=tuple(name for name in STATS if name not in (*_LARGEST, *MEANS)),
    largest=_LARGEST,
    means=MEANS,
    dumped=("score", "covered", "unfinished"),
)
TASK = FORM.prefix + "task"


def infos_of(
    found: Predictions,
    ids: Sequence[str | None],
    segments: Sequence[Segment],
    outputs: Sequence[Output],
    reward: Reward,
) -> list[Info]:
    """What is said of each output of one call of the judge; the reference is what the judge was shown."""
    texts = [
        {"id": name, "prediction": prediction.text, **kept_texts(segment, output, segment.reference.shown(reward))}
        for name, prediction, segment, output in zip(ids, found.predictions, segments, outputs, strict=True)
    ]
    return FORM.infos(found.table, texts, found.scores, found.stats)


def settled(infos: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], *, compared: bool) -> Settled:
    """A step of RLPT: equal predictions of a reference have one verdict; args and raises as RewardTrainer.settled."""
    FORM.check(infos)
    table = FORM.table(infos)
    scores, asked = column(table, "score"), column(table, "judged") == 1
    shown = [(info[FORM.prefix + "reference"], info[FORM.prefix + "prediction"]) for info in infos]
    scores[:] = one_score_each(scores, shown, asked)
    rows, _, size = in_groups(table, groups)
    stats = FORM.stats(infos)
    judge = judge_metrics(torch.tensor([[stats[name] for name in STATS]]))
    metrics = {**step_metrics(rows, size if compared else None), **judge}
    return Settled(tuple(scores_of(scores.tolist(), infos)), (False,) * len(infos), numbers(metrics))
