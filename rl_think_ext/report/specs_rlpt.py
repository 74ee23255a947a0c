"""The figures of RLPT: what the judge says of predictions, how long they are, and how the judge itself fares."""

from __future__ import annotations

from rl_think_ext.report.specs import ENTROPY, GRADIENT, LOSS, RATE, REWARDS, Spec

RLPT = (
    Spec(
        "rlpt-score",
        "Predictions that are right",
        (("rlpt/score", "all"), ("rlpt/asr/score", "what follows (ASR)"), ("rlpt/msr/score", "what is missing (MSR)")),
        "Rises for both tasks. One that rises while predictions shrink is no progress: read some.",
        share=True,
    ),
    Spec(
        "rlpt-status",
        "Form of the outputs",
        (),
        "“ok” rises to nearly all. Too short: the policy tries what begins everything. No open, no close: a longer "
        "cold start. Truncated: a higher max_completion_length.",
        share=True,
        every=("rlpt/status/", ""),
        occurring=True,
    ),
    Spec(
        "rlpt-length",
        "Length of outputs",
        (
            ("rlpt/prediction_length", "prediction, mean"),
            ("rlpt/length", "whole output, mean"),
            ("completions/max_length", "whole output, longest"),
        ),
        "In the paper whole outputs grow. Predictions that shrink are the prefix reward's own trick; outputs that "
        "shrink with them have stopped reasoning.",
        "tokens",
        zero=True,
    ),
    Spec(
        "rlpt-covered",
        "Segments covered by a prediction",
        (
            ("rlpt/segments_covered", "all"),
            ("rlpt/segments_covered_right", "right ones"),
            ("rlpt/asr/covered", "ASR"),
            ("rlpt/msr/covered", "MSR"),
        ),
        "How far into the reference a prediction reaches, by length. Far below 1 it says only how a segment begins.",
        "segments",
        zero=True,
    ),
    Spec(
        "rlpt-spread",
        "Spread of the verdicts within a group",
        (("rlpt/score_spread", "mean standard deviation"),),
        "The signal of a step: half of the predictions right is the most.",
        zero=True,
    ),
    Spec(
        "rlpt-dead",
        "Groups that teach nothing",
        (("rlpt/zero_variance_groups", "all equal"),),
        "All right or all wrong. Many all wrong: longer references, or a longer cold start.",
        share=True,
    ),
    Spec(
        "rlpt-copied",
        "Copies and repetition",
        (
            ("rlpt/prediction_copied", "stand in the prompt"),
            ("rlpt/prediction_repetition", "bytes that repeat"),
            ("rlpt/truncated", "outputs at the length limit"),
        ),
        "Near zero is good.",
        share=True,
    ),
    ENTROPY,
    Spec(
        "rlpt-unscored",
        "Outputs without a verdict",
        (("rlpt/no_verdict", "the judge gave none"), ("rlpt/unscorable", "outputs without a reward")),
        "Left out, never counted as 0. Near zero is good.",
        share=True,
    ),
    Spec(
        "rlpt-reasons",
        "Why there was no verdict",
        (),
        "Of a step, by kind. Timeouts: too many ask at once. Cut, no verdict: another prompt, or more "
        "judge_max_tokens.",
        zero=True,
        every=("rlpt/judge_no_verdict/", ""),
        occurring=True,
    ),
    Spec(
        "rlpt-canaries",
        "Canaries that the judge accepts",
        (
            ("rlpt/judge_canary_right_accepted", "known-right pairs"),
            ("rlpt/judge_canary_wrong_accepted", "known-wrong pairs"),
        ),
        "The right ones at 100 %, the wrong ones at 0: anything else is a judge that does not read, or can be talked "
        "round.",
        share=True,
    ),
    Spec(
        "rlpt-latency",
        "Latency of the judge",
        (("rlpt/judge_latency_p50", "median"), ("rlpt/judge_latency_p95", "95 of 100")),
        "Stays where it was. One that climbs over the run has too few slots, or too many who ask.",
        "seconds",
        zero=True,
    ),
    Spec(
        "rlpt-asked",
        "Pairs of a step",
        (("rlpt/judge_num_asked", "asked"), ("rlpt/judge_num_cached", "known before")),
        "Over all processes. Many that are known: the policy repeats itself word by word.",
        zero=True,
    ),
    Spec(
        "rlpt-seconds",
        "Time of the judge",
        (("rlpt/scoring_seconds", "scoring of a step"), ("rlpt/judge_seconds", "the judge's part")),
        "Grows with what is asked.",
        "seconds",
        zero=True,
    ),
    Spec(
        "rlpt-scoring",
        "Share of time spent on scoring",
        (("rlpt/scoring_share", "scoring"),),
        "The rest is sampling and the update.",
        share=True,
    ),
    LOSS,
    GRADIENT,
    RATE,
    REWARDS,
    Spec(
        "rlpt-eval-score",
        "Right on the evaluation set",
        (
            ("eval_rlpt/score", "all"),
            ("eval_rlpt/asr/score", "what follows (ASR)"),
            ("eval_rlpt/msr/score", "what is missing (MSR)"),
        ),
        "Rises with that in training, or the run memorises.",
        share=True,
    ),
    Spec(
        "rlpt-eval-covered",
        "Segments covered on the evaluation set",
        (("eval_rlpt/segments_covered", "all"),),
        "The same as in training.",
        "segments",
        zero=True,
    ),
)
