"""Alarms: what a run's own metrics say when it is dying quietly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Watch:
    """What all alarms have in common: a run's own beginning, a row of bad logs, and saying a thing once.

    Args:
        settle: Logs that make up the run's own beginning.
        patience: Logs in a row that have to agree before an alarm is raised.
    """

    settle: int = 3
    patience: int = 3
    raised: dict[str, str] = field(default_factory=dict)
    _first: dict[str, list[float]] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)

    def _start(self, name: str, value: float | None) -> float | None:
        first = self._first.setdefault(name, [])
        if value is not None and len(first) < self.settle:
            first.append(value)
            return None
        return sum(first) / len(first) if first else None

    def _persists(self, name: str, bad: bool) -> bool:
        self._count[name] = self._count.get(name, 0) + 1 if bad else 0
        return self._count[name] >= self.patience

    def _raise(self, name: str, text: str) -> bool:
        new = name not in self.raised
        self.raised.setdefault(name, text)
        return new


@dataclass
class Alarms(Watch):
    """Watches RLP's metrics and says, once each, what went wrong.

    Args:
        collapse: Share of its beginning under which a length or entropy has collapsed.
        fall: Nats by which the baseline may fall below the frozen start on the same texts.
        noise: Share of a group's spread that the scorer's rounding may reach.
        dead: Share of zero-variance groups above which a step teaches next to nothing.
    """

    collapse: float = 0.25
    fall: float = 0.5
    noise: float = 0.1
    dead: float = 0.8

    def __call__(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Take the metrics of one log, without their prefix; return the alarms that are new."""
        # NaN says that nobody could say: it is no beginning, and breaks no row of bad logs.
        metrics = {name: None if value is None or value != value else value for name, value in metrics.items()}
        checks: list[tuple[str, bool, str]] = []
        gain, gain_start = metrics.get("gain_frozen"), self._start("gain_frozen", metrics.get("gain_frozen"))
        # A policy that learns gets surer and may get shorter: only without a gain is that a collapse.
        learns = gain is not None and gain_start is not None and gain > gain_start
        for name, what in (("thought_length", "thoughts"), ("entropy", "the sampling entropy")):
            value, start = metrics.get(name), self._start(name, metrics.get(name))
            if value is not None and start is not None:
                text = (
                    f"{what} shrank from {start:.3g} to {value:.3g} while the gain did not rise: the policy "
                    "collapses; lower the learning rate"
                )
                checks.append((f"{name} collapsed", value < self.collapse * start and not learns, text))
        checks += self._direct_path(metrics)
        noise = metrics.get("score_noise_to_spread")
        if noise is not None:
            text = f"the scorer's noise is {noise:.0%} of a group's spread: score in float32, or longer targets"
            checks.append(("noise", noise > self.noise, text))
        dead = metrics.get("zero_variance_groups")
        if dead is not None:
            why = "solved; stop, or take harder texts" if learns else "out of reach; select positions, or warm start"
            text = f"{dead:.0%} of the groups have equal rewards and teach nothing: most likely {why}"
            checks.append(("dead groups", dead > self.dead, text))
        return [text for name, bad, text in checks if self._persists(name, bad) and self._raise(name, text)]

    def _direct_path(self, metrics: Mapping[str, float | None]) -> list[tuple[str, bool, str]]:
        """Gain without thinking: the no-think prediction breaks, and every thought looks good beside it."""
        baseline, frozen = metrics.get("logprob_baseline"), metrics.get("logprob_frozen")
        if baseline is None or frozen is None or baseline == 0.0:
            return []
        text = (
            f"the baseline fell to {baseline:.2f} nats, {frozen - baseline:.2f} below the frozen start on the same "
            "texts: part of the gain is a broken direct path, not thinking; read gain_frozen, lower the learning rate"
        )
        return [("baseline fell", frozen - baseline > self.fall, text)]
