"""Alarms of RLPT: what a run's own metrics say when its predictions shrink, its judge is fooled, or it dies quietly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rl_think_ext.methods.alarms import Watch


@dataclass
class RLPTAlarms(Watch):
    """Watches logged metrics and says, once each, what went wrong.

    Args:
        shrink: Share of its beginning under which predictions, and the segments they cover, have shrunk.
        collapse: Share of its beginning under which the outputs' length, reasoning included, has collapsed.
        lost: Share of the questions on which the judge may give no verdict.
        fooled: Share of known-wrong pairs that the judge may accept.
        harsh: Share of known-right pairs that the judge has to accept.
        copied: Share of predictions that may stand word for word in the prompt.
        malformed: Share of outputs that may have no prediction between the tags.
        cut: Share of outputs that may run into the length limit.
        dead: Share of groups with equal rewards above which a step teaches next to nothing.
        slower: Factor by which the judge may get slower than it was at the beginning.
    """

    shrink: float = 0.5
    collapse: float = 0.25
    lost: float = 0.1
    fooled: float = 0.1
    harsh: float = 0.7
    copied: float = 0.1
    malformed: float = 0.5
    cut: float = 0.3
    dead: float = 0.8
    slower: float = 4.0

    def __call__(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Take the metrics of one log, without their prefix; return the alarms that are new."""
        known = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and value == value}
        checks = self._shares(known) + self._falls(known) + self._judge(known)
        return [text for name, bad, text in checks if self._persists(name, bad) and self._raise(name, text)]

    def _shares(self, known: Mapping[str, float]) -> list[tuple[str, bool, str]]:
        shares = (
            ("copied", "prediction_copied", self.copied, "of the predictions are copied from the prompt: read some"),
            ("cut", "truncated", self.cut, "of the outputs run into the length limit: raise max_completion_length"),
            ("dead", "zero_variance_groups", self.dead, "of the groups have equal rewards and teach nothing"),
        )
        found = [
            (name, known[key] > limit, f"{known[key]:.0%} {text}") for name, key, limit, text in shares if key in known
        ]
        without = [known[f"status/{status}"] for status in ("no_open", "no_close") if f"status/{status}" in known]
        if without:
            text = f"{sum(without):.0%} of the outputs have no prediction between the tags: a longer cold start"
            found.append(("malformed", sum(without) > self.malformed, text))
        return found

    def _falls(self, known: Mapping[str, float]) -> list[tuple[str, bool, str]]:
        """Less and less said is the prefix reward's own trick; less and less thought is what RLPT is blamed for."""
        # Differs: arXiv 2608.23256 sees traces shrink into local completion; the paper sees them grow.
        watched = (
            (
                "prediction_length",
                self.shrink,
                "predictions shrank from {} to {} tokens: the shortest prefix pays best",
            ),
            ("segments_covered", self.shrink, "predictions covered {} segments of their reference, and now {}"),
            ("length", self.collapse, "outputs shrank from {} to {} tokens: the policy stops reasoning"),
        )
        found = []
        for name, share, text in watched:
            value, start = known.get(name), self._start(name, known.get(name))
            if value is not None and start:
                found.append((name, value < share * start, text.format(f"{start:.3g}", f"{value:.3g}")))
        return found

    def _judge(self, known: Mapping[str, float]) -> list[tuple[str, bool, str]]:
        found = []
        if "no_verdict" in known:
            text = f"{known['no_verdict']:.0%} of the outputs got no verdict: look at the judge's server and its output"
            found.append(("lost", known["no_verdict"] > self.lost, text))
        wrong, right = known.get("judge_canary_wrong_accepted"), known.get("judge_canary_right_accepted")
        if wrong is not None:
            text = f"the judge accepts {wrong:.0%} of known-wrong predictions: it is fooled, or too weak"
            found.append(("fooled", wrong > self.fooled, text))
        if right is not None:
            text = f"the judge accepts only {right:.0%} of known-right predictions: it is too weak, or asked badly"
            found.append(("harsh", right < self.harsh, text))
        latency = known.get("judge_latency_p95")
        start = self._start("judge_latency_p95", latency)
        if latency is not None and start:
            text = f"the judge got slower, from {start:.2g} to {latency:.2g} seconds a question: too many ask at once"
            found.append(("slower", latency > self.slower * start, text))
        if "judge_breaker_open" in known:
            text = "the judge was given up within a step, after failures in a row: its server is down or overloaded"
            found.append(("breaker", known["judge_breaker_open"] > 0, text))
        return found
