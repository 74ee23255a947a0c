"""The reward model: conversations in, one Score each, in order; here in this process, or picked for a server.

What it is shown is made by `RewardTemplate` alone. Equal inputs are scored once (F47), a score that is not finite is
none (F12), and the weights are read at the first call, so that a reward object can be made and sent anywhere (F10).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from rl_think_ext.errors import UserError
from rl_think_ext.messages import Message
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.records import Score
from rl_think_ext.scoring.reward_cache import Ids, ScoreCache
from rl_think_ext.scoring.reward_input import RewardInput, RewardTemplate
from rl_think_ext.scoring.reward_load import (
    load_reward_config,
    load_reward_template,
    load_weights,
    num_parameters,
)

if TYPE_CHECKING:
    import torch

    from rl_think_ext.scoring.reward_forward import RewardForward
    from rl_think_ext.scoring.served import ServedRewardModel

LOCAL_LIMIT = 2_000_000_000


@dataclass
class Repeats:
    """How many inputs of a call are scored twice to measure noise.

    Args:
        share: Of all inputs, from 0 to 1.
        every_call: At least one of each call. Where calls are of one input or a few, say no: then it is a share of all
            calls together, the first input among them.
    """

    share: float
    every_call: bool = True
    owed: float = 1.0

    def due(self, num: int) -> int:
        """Of a call of `num` inputs."""
        if not self.share or not num:
            return 0
        if self.every_call:
            return min(num, max(1, round(self.share * num)))
        self.owed += self.share * num
        now = min(num, int(self.owed))
        self.owed -= now
        return now


NOT_FINITE = "score not finite"


class RewardModel(Protocol):
    """Scores conversations; `stats` says what the last call did.

    `seconds` of the call; conversations whose prompt was cut (`num_cut`) and the ids that went (`num_cut_tokens`);
    inputs computed (`num_asked`) and known before (`num_cached`); `num_unscorable`; `noise`, the largest difference
    between two scores of one input in different micro-batches, NaN where it was not measured.
    """

    @property
    def stats(self) -> Mapping[str, float]: ...

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Score]: ...

    @property
    def repeats(self) -> Repeats: ...

    def encode(self, conversation: Sequence[Message]) -> RewardInput | Score: ...


class LocalRewardModel:
    """A sequence-classification model in this process.

    Args:
        config: The method's settings. None of the policy's model settings has a say here (hazard 17).
        device: Where it runs; without one on the accelerator when there is one.

    Raises:
        UserError: at the first look at the template or the weights: what cannot be loaded or is no reward model.
    """

    def __init__(self, config: RLMTConfig, device: torch.device | str | None = None) -> None:
        self.config, self.device = config, device
        self.stats: Mapping[str, float] = {}
        self._cache = ScoreCache(config.cache_size)
        self._noise = math.nan
        self.repeats = Repeats(config.score_noise_share)

    @cached_property
    def template(self) -> RewardTemplate:
        """What writes conversations as this model reads them."""
        return load_reward_template(self.config)

    @cached_property
    def forward(self) -> RewardForward:
        """The model itself, loaded when it is first asked for."""
        import torch

        from rl_think_ext.scoring.reward_forward import RewardForward

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = load_weights(self.config)
        most, output = self.config.max_tokens_per_batch, self.config.output
        return RewardForward(model, max_tokens=most, device=device, output=output)

    def encode(self, conversation: Sequence[Message]) -> RewardInput | Score:
        """The ids that the model would be shown, or why there are none."""
        return self.template.encode(conversation)

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Score]:
        """One Score for each conversation, in order; the same ids get the same number, to the bit."""
        start, self._noise = time.monotonic(), math.nan
        inputs = [self.encode(conversation) for conversation in conversations]
        scores = score_inputs(inputs, self._cache, self._compute)
        self.stats = call_stats(inputs, scores, self._cache, time.monotonic() - start, self._noise)
        return scores

    def __getstate__(self) -> dict[str, Any]:
        kept = {"config": self.config, "device": self.device, "stats": self.stats}
        empty = ScoreCache(self.config.cache_size)
        return kept | {"_cache": empty, "_noise": math.nan, "repeats": replace(self.repeats)}

    def _compute(self, rows: list[Ids]) -> list[Score]:
        values = self.forward(rows)
        due = self.repeats.due(len(rows))
        if due:
            self._noise = self.forward.noise(rows, values, due)
        return [Score(v) if math.isfinite(v) else Score.unscorable(NOT_FINITE) for v in values.tolist()]


def score_inputs(
    inputs: Sequence[RewardInput | Score], cache: ScoreCache, compute: Callable[[list[Ids]], list[Score]]
) -> list[Score]:
    """One Score for each input, in order: its own reason, or what `compute` or the cache say of its ids.

    A score of a prompt that was cut says so: `num_cut` in its metrics.
    """
    found = iter(cache.ask([given.ids for given in inputs if isinstance(given, RewardInput)], compute))
    return [_with_cut(next(found), given.num_cut) if isinstance(given, RewardInput) else given for given in inputs]


def _with_cut(score: Score, num_cut: int) -> Score:
    return replace(score, metrics={**score.metrics, "num_cut": num_cut}) if num_cut else score


def call_stats(
    inputs: Sequence[RewardInput | Score],
    scores: Sequence[Score],
    cache: ScoreCache,
    seconds: float,
    noise: float = math.nan,
) -> dict[str, float]:
    """What a call says of itself, as `RewardModel` lists it; the same keys every time."""
    num_cut = [given.num_cut for given in inputs if isinstance(given, RewardInput)]
    return {
        "seconds": seconds,
        "num_cut": sum(num > 0 for num in num_cut),
        "num_cut_tokens": sum(num_cut),
        "num_asked": cache.num_asked,
        "num_cached": cache.num_cached,
        "num_unscorable": sum(score.value is None for score in scores),
        "noise": noise,
    }


def load_reward_model(
    config: RLMTConfig,
    *,
    world_size: int = 1,
    device: torch.device | str | None = None,
    time_limit: float | None = None,
) -> RewardModel:
    """The reward model that the settings ask for; its tokenizer and template are checked, weights are not read yet.

    Args:
        config: The method's settings.
        world_size: The processes that share a server's `max_concurrency`.
        device: Where a local model runs.
        time_limit: Seconds that a call may take at most, whatever the settings say.

    Raises:
        UserError: no reward model, one that cannot be used, or one that is too large to be loaded by every process.
    """
    model_config = load_reward_config(config)
    template = load_reward_template(config, model_config)
    if config.server:
        _warn_of_padding(template, model_config)
        return _served(config, template, world_size, time_limit)
    if config.backend == "auto" and (num := num_parameters(config, model_config)) > LOCAL_LIMIT:
        raise UserError(
            f"`{config.reward_model}` has {num / 1e9:.1f} billion weights, and every process would load them all: run "
            f"`vllm serve {config.reward_model} --runner pooling` and set `server: http://HOST:8000`, or set "
            "`backend: local` to load it here all the same"
        )
    local = LocalRewardModel(config, device)
    local.template = template
    return local


def _served(
    config: RLMTConfig, template: RewardTemplate, world_size: int, time_limit: float | None
) -> ServedRewardModel:
    from rl_think_ext.scoring.endpoint import EndpointConfig
    from rl_think_ext.scoring.served import ServedRewardModel

    assert config.server is not None
    endpoint = EndpointConfig(
        config.server, config.api_key_env, config.max_concurrency, config.timeout, config.deadline, config.retries
    )
    return ServedRewardModel(
        endpoint,
        template,
        model=config.server_model or config.reward_model,
        num_processes=world_size,
        time_limit=time_limit,
        cache_size=config.cache_size,
        noise_share=config.score_noise_share,
    )


def _warn_of_padding(template: RewardTemplate, model_config: Any) -> None:
    """Say so where a server scores another place than transformers does."""
    found = template.encode([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
    pad_id = model_config.get_text_config().pad_token_id
    if isinstance(found, RewardInput) and pad_id is not None and found.ids[-1] == pad_id:
        warnings.warn(
            "the reward model's template ends on the model's padding token: transformers scores the token before it, "
            "vLLM the token itself, so a server's scores are not those of `backend: local`",
            stacklevel=3,
        )
