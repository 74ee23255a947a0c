"""The figures of the related rewards: VeriFree, RLPR and RPT."""

from __future__ import annotations

from rl_think_ext.report.specs import ENTROPY, GRADIENT, LOSS, RATE, REWARDS, Spec


def _unscorable(prefix: str) -> Spec:
    return Spec(
        f"{prefix}unscorable",
        "Unscorable samples by reason",
        ((f"{prefix}unscorable", "all reasons"),),
        "Left out, never counted as 0. Near zero is good.",
        share=True,
        every=(f"{prefix}unscorable/", ""),
        occurring=True,
    )


def answer(method: str) -> tuple[Spec, ...]:
    """Those of a method that is paid by the probability of a reference answer."""
    prefix = f"{method}/"
    return (
        Spec(
            f"{prefix}probability",
            "Probability of the reference answer",
            (
                (f"{prefix}probability", "with the thought"),
                (f"{prefix}probability_direct", "without"),
                (f"{prefix}reward", "reward"),
            ),
            "Rises with the thought. Long answers have a small one whatever the thought.",
            share=True,
        ),
        Spec(
            f"{prefix}accuracy",
            "Accuracy on the reference answer",
            ((f"{prefix}accuracy", "with the thought"),),
            "The share of its tokens that are the most likely token.",
            share=True,
        ),
        Spec(
            f"{prefix}length",
            "Length of thoughts",
            ((f"{prefix}thought_length", "mean"), ("completions/max_length", "longest")),
            "May move, must not collapse while the reward stands still, nor grow into the cap.",
            "tokens",
            zero=True,
        ),
        ENTROPY,
        Spec(
            f"{prefix}groups",
            "Groups that teach nothing",
            (
                (f"{prefix}zero_variance_groups", "within the scorer's noise"),
                (f"{prefix}left_out", "left out by the filter"),
            ),
            "Groups whose thoughts are all worth the same: solved, or out of reach.",
            share=True,
        ),
        Spec(
            f"{prefix}std",
            "Spread within a group",
            ((f"{prefix}reward_std", "standard deviation"), (f"{prefix}std_average", "its moving average")),
            "A prompt below its share of the average is left out.",
            zero=True,
        ),
        _unscorable(prefix),
        LOSS,
        GRADIENT,
        RATE,
        REWARDS,
    )


RPT = (
    Spec(
        "rpt/reward",
        "Predictions that match",
        (("rpt/reward", "reward"), ("rpt/prefix", "right bytes, any boundary"), ("rpt/predicted", "with a prediction")),
        "The reward rises. Right bytes far above it are predictions that stop inside a token.",
        share=True,
    ),
    Spec(
        "rpt/bytes",
        "Length of predictions",
        (("rpt/prediction_bytes", "mean"),),
        "A longer one is worth no more than a short one.",
        "bytes",
        zero=True,
    ),
    Spec(
        "rpt/length",
        "Length of outputs",
        (("completions/mean_length", "mean"), ("completions/max_length", "longest")),
        "An output that is cut off has no prediction.",
        "tokens",
        zero=True,
    ),
    ENTROPY,
    Spec(
        "rpt/dead",
        "Groups that teach nothing",
        (("frac_reward_zero_std", "exactly equal"),),
        "All right or all wrong: build the data with a higher or lower entropy.",
        share=True,
    ),
    _unscorable("rpt/"),
    LOSS,
    GRADIENT,
    RATE,
    REWARDS,
)
