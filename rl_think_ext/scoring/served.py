"""A reward model behind vLLM's `/classify`: token ids go over the wire, one raw number per conversation comes back.

The texts are written by the reward model's own template on this side, so that no server adds a second BOS or truncates
where it likes. Equal ids are asked once, and what was scored stays in the cache.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rl_think_ext.messages import Message
from rl_think_ext.records import Score
from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig, Failure
from rl_think_ext.scoring.reward_cache import Ids, ScoreCache
from rl_think_ext.scoring.reward_input import RewardInput, RewardTemplate
from rl_think_ext.scoring.reward_model import Repeats, call_stats, score_inputs

PATH = "/classify"
# Enough to make HTTP's share small; few enough that a lost request loses little and the server's own batching sees
# many of them.
INPUTS_PER_REQUEST = 8
LARGEST = 3e38  # of float32: what the trainer would turn into an infinity is none
Item = float | Failure


class ServedRewardModel:
    """Scores conversations on a server; what it cannot score is unscorable with the reason, and the step goes on.

    Args:
        config: Where the server is.
        template: Writes conversations as ids.
        model: The model's name on the server; None where it serves one.
        num_processes: How many processes share `config.max_concurrency`.
        time_limit: Seconds that a call may take at most, under half of the process group's time-out.
        cache_size: Scores that are kept.
        noise_share: Share of the inputs that is scored twice, the second time in other company (F8).
    """

    def __init__(
        self,
        config: EndpointConfig,
        template: RewardTemplate,
        *,
        model: str | None = None,
        num_processes: int = 1,
        time_limit: float | None = None,
        cache_size: int = 65536,
        noise_share: float = 0.01,
    ) -> None:
        if time_limit is not None:
            config = dataclasses.replace(config, deadline=min(config.deadline, time_limit))
        self.endpoint = Endpoint(config, num_processes)
        self.template, self.model = template, model
        self.repeats = Repeats(noise_share)
        self.stats: Mapping[str, float] = {}
        # Seconds that the next call has, where those who ask have waited already; without it the settings decide.
        self.time_left: float | None = None
        self._cache = ScoreCache(cache_size)
        self._noise = math.nan

    def encode(self, conversation: Sequence[Message]) -> RewardInput | Score:
        """What goes over the wire for a conversation, or why nothing does."""
        return self.template.encode(conversation)

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Score]:
        """One score for each conversation, in order.

        Raises:
            UserError: the server's address, key or model is wrong (F4).
        """
        begin, self._noise = time.monotonic(), math.nan
        inputs = [self.encode(conversation) for conversation in conversations]
        scores = score_inputs(inputs, self._cache, partial(self._score, begin))
        self.stats = call_stats(inputs, scores, self._cache, time.monotonic() - begin, self._noise)
        return scores

    def _score(self, begin: float, rows: list[Ids]) -> list[Score]:
        """Score ids in requests of some; those of a request that was refused are asked once more, each alone."""
        num_twice = self.repeats.due(len(rows))
        some = min(INPUTS_PER_REQUEST, math.ceil(len(rows) / self.endpoint.num_at_once))
        parts = [rows[i : i + some] for i in range(0, len(rows), some)]
        found = self._ask([*parts, *([row] for row in rows[:num_twice])], begin, refusals_raise=some == 1)
        found, twice = found[: len(rows)], found[len(rows) :]
        pairs = [(a, b) for a, b in zip(found, twice, strict=False) if isinstance(a, float) and isinstance(b, float)]
        self._noise = max((abs(a - b) for a, b in pairs), default=math.nan)
        refused = [i for i, item in enumerate(found) if isinstance(item, Failure) and item.refused]
        if refused and some > 1:
            for i, item in zip(refused, self._ask([[rows[i]] for i in refused], begin), strict=True):
                found[i] = item
        return [_score(item) for item in found]

    def _ask(self, parts: Sequence[Sequence[Ids]], begin: float, *, refusals_raise: bool = True) -> list[Item]:
        """A number or a Failure for every input of every part, one request a part."""
        whole = self.endpoint.config.deadline
        whole = whole if self.time_left is None else min(whole, self.time_left)
        left = max(0.001, whole - (time.monotonic() - begin))
        same: dict[str, Any] = {"use_activation": False}  # the raw number, not a probability
        if self.model is not None:
            same["model"] = self.model
        bodies = [same | {"input": part} for part in parts]
        replies = self.endpoint.ask(PATH, bodies, _as_it_is, deadline=left, refusals_raise=refusals_raise)
        return [item for part, reply in zip(parts, replies, strict=True) for item in _items(part, reply)]


def _as_it_is(reply: Any) -> Any:
    return reply


def _items(part: Sequence[Ids], reply: Any) -> Sequence[Item]:
    """A number or a Failure for every input of one request, by the index that the server gives (F7)."""
    if isinstance(reply, Failure):
        return [reply] * len(part)
    try:
        by_index = {row["index"]: row["probs"] for row in reply["data"]}
        if len(reply["data"]) != len(part) or set(by_index) != set(range(len(part))):
            return [Failure(f"unreadable: {len(reply['data'])} scores for {len(part)} inputs")] * len(part)
        num_read, num_sent = reply.get("usage", {}).get("prompt_tokens"), sum(map(len, part))
        if num_read not in (None, num_sent):
            return [Failure(f"other input: the server read {num_read} tokens of the {num_sent} sent")] * len(part)
    except (AttributeError, LookupError, TypeError):
        return [Failure("unreadable: not the reply of a model that classifies")] * len(part)
    return [_number(by_index[i]) for i in range(len(part))]


def _number(probs: Any) -> Item:
    """The one number that a model with one label gives."""
    if not isinstance(probs, list) or len(probs) != 1:
        return Failure("unreadable: not one number for an input; the model has other than one label")
    value = probs[0]
    # No bool, no "NaN" as text; json reads NaN and 1e400 as floats, and NaN is not below anything.
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        return Failure(f"not finite: {str(value)[:20]!r}")
    return float(value)


def _score(item: Item) -> Score:
    return Score.unscorable(f"reward server: {item.reason}") if isinstance(item, Failure) else Score(item)
