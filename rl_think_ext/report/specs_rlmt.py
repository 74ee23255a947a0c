"""The figures of RLMT: of the runs that a reward model pays, and of its warm start and its pairs."""

from __future__ import annotations

from rl_think_ext.report.specs import ENTROPY, GRADIENT, LOSS, RATE, REWARDS, Spec

RLMT = (
    Spec(
        "rlmt-score",
        "Score of the reward model",
        (("rlmt/score", "of the scored answers"), ("rewards/rlmt/mean", "paid, malformed outputs included")),
        "Rises, and flattens out. The two meet as the form is learned; one that still rises when samples read worse is "
        "a reward model being gamed.",
    ),
    Spec(
        "rlmt-status",
        "Form of the outputs",
        (),
        "“ok” rises to nearly all and stays there. Without opening or closing tags: a longer warm start. Truncated: a "
        "higher max_completion_length.",
        share=True,
        every=("rlmt/status/", ""),
        occurring=True,
    ),
    Spec(
        "rlmt-length",
        "Length of outputs",
        (
            ("rlmt/answer_length", "answer, mean"),
            ("rlmt/thought_length", "thought, mean"),
            ("completions/max_length", "whole output, longest"),
        ),
        "Answers that grow while the score rises are the oldest trick: read some. Thoughts may grow, too, but not into "
        "the limit, and should not vanish.",
        "tokens",
        zero=True,
    ),
    Spec(
        "rlmt-spread",
        "Spread of the score within a group",
        (("rlmt/score_spread", "mean standard deviation"), ("rlmt/score_noise", "the reward model's noise")),
        "The signal of a step against its noise: the noise belongs far below.",
        zero=True,
    ),
    Spec(
        "rlmt-dead",
        "Groups that teach nothing",
        (("rlmt/zero_variance_groups", "within the noise"), ("frac_reward_zero_std", "exactly equal")),
        "Groups whose outputs are all paid the same: all without the form, or all alike.",
        share=True,
    ),
    Spec(
        "rlmt-kl",
        "Distance from the reference (KL)",
        (("kl", "mean over tokens"),),
        "Grows slowly. A steep rise together with the score: a higher beta, or a lower learning rate.",
        "nats",
        zero=True,
    ),
    ENTROPY,
    Spec(
        "rlmt-cut",
        "What was cut",
        (("rlmt/truncated", "outputs at the length limit"), ("rlmt/prompts_cut", "prompts, for the reward model")),
        "Outputs: raise max_completion_length. Prompts: the reward model has no room for them; drop the longest.",
        share=True,
    ),
    Spec(
        "rlmt-unscored",
        "Answers without a score",
        (
            ("rlmt/no_score", "the reward model gave none"),
            ("rlmt/unscorable", "outputs without a reward"),
            ("rlmt/below_floor", "scores below the floor"),
        ),
        "Left out, never counted as 0. Near zero is good. Below the floor, a wrong form pays more than a bad answer.",
        share=True,
    ),
    Spec(
        "rlmt-scoring",
        "Share of time spent on scoring",
        (("rlmt/scoring_share", "scoring"),),
        "The rest is sampling and the update.",
        share=True,
    ),
    Spec(
        "rlmt-seconds",
        "Time of the reward model",
        (("rlmt/scoring_seconds", "scoring of a step"), ("rlmt/reward_model_seconds", "the model's part")),
        "Grows with the answers. A served model that gets slower has too few slots, or too many who ask.",
        "seconds",
        zero=True,
    ),
    Spec(
        "rlmt-asked",
        "Answers that were scored",
        (("rlmt/reward_model_num_asked", "anew"), ("rlmt/reward_model_num_cached", "remembered")),
        "Per step and process. Many that are remembered: the policy repeats itself word by word.",
        zero=True,
    ),
    LOSS,
    GRADIENT,
    RATE,
    REWARDS,
    Spec(
        "rlmt-eval-score",
        "Score on the evaluation set",
        (("eval_rlmt/score", "of the scored answers"),),
        "Rises with that in training, or the run memorises.",
    ),
    Spec(
        "rlmt-eval-status",
        "Form on the evaluation set",
        (("eval_rlmt/status/ok", "ok"),),
        "The same as in training.",
        share=True,
    ),
    Spec(
        "rlmt-eval-length",
        "Lengths on the evaluation set",
        (("eval_rlmt/answer_length", "answer"), ("eval_rlmt/thought_length", "thought")),
        "The same as in training.",
        "tokens",
        zero=True,
    ),
)

PREDICTIONS = Spec(
    "predictions",
    "Entropy of the predictions",
    (("entropy", "per token"),),
    "How sure the model is of the next token of the data.",
    "nats",
    zero=True,
)

SFT = (
    Spec(
        "sft-loss",
        "Loss of thoughts and answers",
        (("loss", "training"), ("eval_loss", "evaluation")),
        "Both fall. An evaluation that rises again: fewer epochs.",
        "nats",
    ),
    Spec(
        "sft-accuracy",
        "Tokens predicted right",
        (("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "evaluation")),
        "Rises quickly as the form is learned, then slowly.",
        share=True,
    ),
    PREDICTIONS,
    GRADIENT,
    RATE,
)

DPO = (
    Spec(
        "dpo-loss",
        "Loss of the pairs",
        (("loss", "training"), ("eval_loss", "evaluation")),
        "Starts at 0.69, which is chance, and falls. Near zero it has learned the pairs by heart.",
        "nats",
        zero=True,
    ),
    Spec(
        "dpo-accuracy",
        "Pairs told apart",
        (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "evaluation")),
        "Starts at half. In training alone at 100 %: fewer epochs, or a lower learning rate.",
        share=True,
    ),
    Spec(
        "dpo-margin",
        "Margin of chosen over rejected",
        (("rewards/margins", "training"), ("eval_rewards/margins", "evaluation")),
        "Grows from zero.",
        "nats",
        zero=True,
    ),
    Spec(
        "dpo-rewards",
        "Implicit rewards",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
        "They part. Where both fall far, the policy forgets what was chosen, too: a higher beta.",
        "nats",
        zero=True,
    ),
    PREDICTIONS,
    GRADIENT,
    RATE,
)
