"""The figures of RLP."""

from __future__ import annotations

from rl_think_ext.report.specs import ENTROPY, GRADIENT, LOSS, RATE, REWARDS, Spec

RLP = (
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
    ENTROPY,
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
        "unscorable",
        "Unscorable samples by reason",
        (("rlp/unscorable", "all reasons"),),
        "Left out, never counted as 0. Near zero is good.",
        share=True,
        every=("rlp/unscorable/", ""),
        occurring=True,
    ),
    Spec(
        "scoring",
        "Share of time spent on scoring",
        (("rlp/scoring_share", "scoring"),),
        "The rest is sampling and the update.",
        share=True,
    ),
    LOSS,
    GRADIENT,
    RATE,
    Spec(
        "ema",
        "Distance of the baseline's weights",
        (("rlp/ema_distance", "policy − average"),),
        "How far the average lags.",
    ),
    REWARDS,
    Spec(
        "eval-gain",
        "Gain on the evaluation set",
        (("eval_rlp/gain_frozen", "against the frozen start"), ("eval_rlp/gain", "against the baseline")),
        "Rises with that in training, or the run memorises.",
        "nats",
    ),
    Spec(
        "eval-accuracy",
        "Accuracy on the evaluation set",
        (("eval_rlp/accuracy", "with the thought"), ("eval_rlp/baseline_accuracy", "without")),
        "The same, for the most likely token.",
        share=True,
    ),
)
