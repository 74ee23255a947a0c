"""Which metrics are drawn together, what each figure is called, and what to look for in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rl_think_ext.report.folder import Folder
from rl_think_ext.report.text import number

# Points of one curve in the drawing: more cannot be seen.
MOST_POINTS = 400


@dataclass(frozen=True)
class Spec:
    """A figure: its series by metric and label, a unit, what to look for, and whether 0 or 1 bound it."""

    key: str
    title: str
    series: tuple[tuple[str, str], ...]
    look: str
    unit: str = ""
    zero: bool = False
    share: bool = False


@dataclass(frozen=True)
class Curve:
    """One metric of one folder: steps and values, thinned to means of equal stretches with their lowest and highest."""

    label: str
    folder: int
    style: int
    steps: tuple[float, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    first: float
    last: float

    @property
    def is_thinned(self) -> bool:
        """Whether points stand for stretches of steps."""
        return self.lows != self.highs


@dataclass(frozen=True)
class Figure:
    """A spec with the curves that were found for it."""

    spec: Spec
    curves: tuple[Curve, ...]
    ceilings: tuple[float, ...] = ()


SPECS = (
    Spec(
        "gain",
        "Gain of a thought",
        (("rlp/gain_frozen", "against the frozen start"), ("rlp/gain", "reward: against the baseline")),
        "Rises, and the two stay close. A reward far above the gain against the frozen start is a baseline that broke.",
        "nats",
        zero=True,
    ),
    Spec(
        "logprobs",
        "Log-probabilities of the target",
        (
            ("rlp/logprob_reasoned", "with the thought"),
            ("rlp/logprob_baseline", "baseline, without"),
            ("rlp/logprob_frozen", "frozen start, without"),
        ),
        "The top one rises while the others stay where they were. A falling baseline is gain without thinking.",
        "nats",
    ),
    Spec(
        "accuracy",
        "Accuracy on the target",
        (("rlp/accuracy", "with the thought"), ("rlp/baseline_accuracy", "without")),
        "The share of target tokens that are the most likely token. It should rise with the gain.",
        share=True,
    ),
    Spec(
        "length",
        "Length of thoughts",
        (("rlp/thought_length", "mean"), ("completions/max_length", "longest")),
        "May move, must not collapse while the gain stands still, nor grow into the cap.",
        "tokens",
        zero=True,
    ),
    Spec(
        "entropy",
        "Entropy of sampling",
        (("entropy", "per token"),),
        "Falls as the policy gets surer. At zero there is nothing left to choose from.",
        "nats",
        zero=True,
    ),
    Spec(
        "dead",
        "Groups that teach nothing",
        (("rlp/zero_variance_groups", "within the scorer's noise"), ("frac_reward_zero_std", "exactly equal")),
        "Groups whose thoughts are all worth the same: solved, or out of reach; rl-think gain --select drops them.",
        share=True,
    ),
    Spec(
        "spread",
        "Spread within a group",
        (("rlp/gain_spread", "mean standard deviation"), ("rlp/score_noise", "the scorer's noise")),
        "The signal of a step against its noise: the noise belongs far below.",
        "nats",
        zero=True,
    ),
    Spec(
        "closing",
        "Thoughts that do not end well",
        (("rlp/unclosed", "not closed"), ("rlp/nested", "a second opening tag")),
        "Unclosed thoughts were cut off or ended the text: a longer cap, or a lower learning rate.",
        share=True,
    ),
    Spec(
        "unscorable", "Unscorable samples by reason", (), "Left out, never counted as 0. Near zero is good.", share=True
    ),
    Spec(
        "scoring",
        "Share of time spent on scoring",
        (("rlp/scoring_share", "scoring"),),
        "The rest is sampling and the update.",
        share=True,
    ),
    Spec("loss", "Loss", (("loss", "loss"),), "Near zero by construction; only jumps tell something.", zero=True),
    Spec("grad", "Norm of the gradient", (("grad_norm", "before clipping"),), "Spikes ask for a lower learning rate."),
    Spec("rate", "Learning rate", (("learning_rate", "learning rate"),), "The schedule as it was run.", zero=True),
    Spec(
        "ema",
        "Distance of the baseline's weights",
        (("rlp/ema_distance", "policy − average"),),
        "How far the average lags.",
    ),
    Spec("rewards", "Other rewards", (), "Means of the reward functions beside RLP."),
    Spec(
        "eval-gain",
        "Gain on the evaluation set",
        (),
        "Rises with that in training, or the run memorises.",
        "nats",
    ),
    Spec("eval-accuracy", "Accuracy on the evaluation set", (), "The same, for the most likely token.", share=True),
)
_UNSCORABLE, _EVAL = "rlp/unscorable/", "eval_rlp/"


def figures(folders: Sequence[Folder], ceilings: Sequence[float] = ()) -> tuple[list[Figure], list[str]]:
    """Figures of everything that was logged, and the titles of what was not."""
    found, missing = [], []
    for spec in SPECS:
        curves: list[Curve] = []
        for index, folder in enumerate(folders):
            series = spec.series or tuple(_dynamic(spec.key, folder))
            curves += [c for style, one in enumerate(series) for c in _curve(folder, index, style, *one)]
        if curves:
            found.append(Figure(spec, tuple(curves), tuple(ceilings) if "gain" in spec.key else ()))
        else:
            missing.append(spec.title)
    return found, missing


def _dynamic(key: str, folder: Folder) -> Iterator[tuple[str, str]]:
    """Series whose names only the log knows."""
    names = sorted({name for entry in folder.log.values() for name in entry})
    if key == "unscorable":
        # Every reason is logged every time; drawn are those that occurred, or the total, which is then 0.
        reasons = [n for n in names if n.startswith(_UNSCORABLE) and any(number(e.get(n)) for e in folder.log.values())]
        yield from ((n, n.removeprefix(_UNSCORABLE).replace("_", " ")) for n in reasons)
        if not reasons and "rlp/unscorable" in names:
            yield "rlp/unscorable", "all reasons"
    elif key == "rewards":
        means = [n for n in names if n.startswith("rewards/") and n.endswith("/mean") and n != "rewards/rlp/mean"]
        yield from ((n, n.removeprefix("rewards/").removesuffix("/mean")) for n in means)
    elif key == "eval-gain":
        yield from ((_EVAL + "gain_frozen", "against the frozen start"), (_EVAL + "gain", "against the baseline"))
    elif key == "eval-accuracy":
        yield from ((_EVAL + "accuracy", "with the thought"), (_EVAL + "baseline_accuracy", "without"))


def _curve(folder: Folder, index: int, style: int, metric: str, label: str) -> Iterator[Curve]:
    """The curve of a metric, or nothing where it was never logged as a number."""
    points = series(folder.log, metric)
    if points:
        steps, means, lows, highs = zip(*thinned(points, MOST_POINTS), strict=True)
        yield Curve(label, index, style, steps, means, lows, highs, points[0][1], points[-1][1])


def series(log: Mapping[float, Mapping[str, object]], metric: str) -> list[tuple[float, float]]:
    """Step and value of every log that holds the metric as a finite number."""
    pairs = ((step, number(entry.get(metric))) for step, entry in log.items())
    return [(step, value) for step, value in pairs if value is not None]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float, float, float]]:
    """Step, mean, lowest and highest of at most `most` equal stretches; every point by itself where they are few.

    >>> thinned([(1, 0.0), (2, 1.0), (3, 5.0), (4, 7.0)], 2)
    [(1.5, 0.5, 0.0, 1.0), (3.5, 6.0, 5.0, 7.0)]
    """
    if len(points) <= most:
        return [(step, value, value, value) for step, value in points]
    edges = [len(points) * i // most for i in range(most + 1)]
    out = []
    for start, stop in pairwise(edges):
        steps, values = zip(*points[start:stop], strict=True)
        out.append((sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
    return out
