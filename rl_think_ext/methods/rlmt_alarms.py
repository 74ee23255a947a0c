"""Alarms of RLMT: what a run's own metrics say when it games its reward model, or dies quietly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rl_think_ext.methods.alarms import Watch


@dataclass
class RLMTAlarms(Watch):
    """Watches logged metrics and says, once each, what went wrong.

    Args:
        form: Share of outputs with the right form below which most of a step teaches form alone.
        cut: Share of outputs that may run into the length limit.
        lost: Share of answers that the reward model may fail to score.
        growth: Factor by which answers may grow over their beginning while the score rises.
        collapse: Share of its beginning under which the thoughts' length has collapsed.
        dead: Share of groups with equal rewards above which a step teaches next to nothing.
        noise: Share of a group's spread that the reward model's own noise may reach.
    """

    form: float = 0.5
    cut: float = 0.3
    lost: float = 0.1
    growth: float = 3.0
    collapse: float = 0.25
    dead: float = 0.8
    noise: float = 0.1

    def __call__(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Take the metrics of one log, without their prefix; return the alarms that are new."""
        known = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and value == value}
        checks = [*self._shares(known), *self._lengths(known)]
        return [text for name, bad, text in checks if self._persists(name, bad) and self._raise(name, text)]

    def _shares(self, known: Mapping[str, float]) -> list[tuple[str, bool, str]]:
        spread = known.get("score_spread", 0.0)
        noise = known.get("score_noise", 0.0) / spread if spread > 0 else 0.0
        shares = (
            ("form", 1 - known.get("status/ok", 1.0), 1 - self.form, "of the outputs have not the form: warm start"),
            ("cut", known.get("truncated", 0.0), self.cut, "of the outputs ran into their length limit: raise it"),
            ("lost", known.get("no_score", 0.0), self.lost, "of the answers got no score: look at the reward model"),
            (
                "below",
                known.get("below_floor", 0.0),
                0.0,
                "of the scores lie below the floor: lower it, or leave it out",
            ),
            ("dead", known.get("zero_variance_groups", 0.0), self.dead, "of the groups have equal rewards"),
            ("noise", noise, self.noise, "of a group's spread is the reward model's own noise: score in float32"),
        )
        return [(name, value > limit, f"{value:.0%} {text}") for name, value, limit, text in shares]

    def _lengths(self, known: Mapping[str, float]) -> list[tuple[str, bool, str]]:
        """Longer and longer answers are the oldest way to please a reward model."""
        score, found = known.get("score"), []
        start = self._start("score", score)
        rises = score is not None and start is not None and score > start
        answer, answer_start = known.get("answer_length"), self._start("answer_length", known.get("answer_length"))
        if answer is not None and answer_start:
            text = (
                f"answers grew from {answer_start:.0f} to {answer:.0f} tokens while the score rose: read some of them"
            )
            found.append(("length", rises and answer > self.growth * answer_start, text))
        thought, thought_start = known.get("thought_length"), self._start("thought_length", known.get("thought_length"))
        if thought is not None and thought_start:
            text = f"thoughts shrank from {thought_start:.0f} to {thought:.0f} tokens: the policy stops thinking"
            found.append(("thoughts", thought < self.collapse * thought_start, text))
        return found
