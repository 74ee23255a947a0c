"""A language model behind an OpenAI-compatible endpoint as RLPT's judge: one question a pair, one line back.

Equal pairs are asked once, verdicts are kept, and what brings no verdict is unscorable with the reason: never 0.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.methods.verdict import parse_verdict
from rl_think_ext.records import Score
from rl_think_ext.scoring.chat import Reply, chat
from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig, Failure
from rl_think_ext.scoring.judge import NO_VERDICT, Pair
from rl_think_ext.scoring.judge_cache import Key, VerdictCache, verdict_key
from rl_think_ext.scoring.judge_canaries import Canary, accepted, canaries
from rl_think_ext.scoring.judge_question import QUOTING, Questions, load_template, wording

KEPT_AT_ONCE = 64  # verdicts; so many at most are lost when the process is killed
Answer = Reply | Failure


class ServedJudge:
    """Asks a server about pairs; `stats` are listed at `Judge`.

    Args:
        config: RLPT's settings.
        num_processes: How many processes share `config.max_concurrency`.
        time_limit: Seconds that a call may take at most, under half of the process group's time-out.

    Raises:
        UserError: no server or model, or a prompt or a cache file that cannot be used.
    """

    def __init__(self, config: RLPTConfig, *, num_processes: int = 1, time_limit: float | None = None) -> None:
        self.config, self.template = config, load_template(config.judge_prompt)
        self.endpoint = Endpoint(_endpoint_config(config, time_limit), num_processes)
        self.cache = VerdictCache(config.cache_size, config.cache_file)
        self.identity = _identity(config, self.template)
        self.stats: Mapping[str, float] = {}
        # Seconds that the next call has, where those who ask have waited already; without it the settings decide.
        self.time_left: float | None = None
        # Called with the number of answers that are there and of those asked for, canaries among them.
        self.on_answer: Callable[[int, int], None] | None = None
        self._turn = 0

    def __call__(self, pairs: Sequence[Pair]) -> list[Score]:
        """One verdict for each pair, in order.

        Raises:
            UserError: the server's address, key or model is wrong (F4).
        """
        begin = time.monotonic()
        keys = [verdict_key(self.identity, *pair) for pair in pairs]
        first = dict(zip(reversed(keys), reversed(pairs), strict=True))
        known = self.cache.look(keys)
        unknown = [key for key in dict.fromkeys(keys) if key not in known]
        asked = [first[key] for key in unknown]
        known_pairs = canaries(asked, self.config.num_canaries, self._turn, whole=self.config.reward == "strict")
        self._turn += bool(asked)
        # The canaries go first: the deadline cuts them off last, and one of them sees whether a server is back.
        answers = self._ask([*(canary.pair for canary in known_pairs), *asked], unknown, len(known_pairs), begin)
        scores = {key: _score(answer) for key, answer in zip(unknown, answers[len(known_pairs) :], strict=True)}
        scores |= {key: Score(float(verdict)) for key, verdict in known.items()}
        found = [scores[key] for key in keys]
        self.stats = self._stats(time.monotonic() - begin, found, answers, known_pairs) | {
            "num_asked": float(len(unknown)),
            "num_cached": float(sum(key in known for key in keys)),
        }
        return found

    def _ask(self, pairs: Sequence[Pair], keys: Sequence[Key], num_canaries: int, begin: float) -> list[Answer]:
        """The judge's answers; the verdicts among them are kept as they come, those on canaries never."""
        config, fresh, num_there = self.config, dict[Key, int](), itertools.count(1)

        def keep(index: int, answer: Answer) -> None:
            if self.on_answer is not None:
                self.on_answer(next(num_there), len(pairs))
            verdict = _score(answer).value
            if index >= num_canaries and verdict is not None:
                fresh[keys[index - num_canaries]] = int(verdict)
            if len(fresh) >= KEPT_AT_ONCE:
                self.cache.keep(fresh)
                fresh.clear()

        whole = self.endpoint.config.deadline
        whole = whole if self.time_left is None else min(whole, self.time_left)
        try:
            return chat(
                self.endpoint,
                config.judge_model,
                Questions(pairs, config, self.template),
                temperature=config.judge_temperature,
                top_p=1.0,
                max_tokens=config.judge_max_tokens,
                on_reply=keep,
                extra=_thinking(config),
                deadline=max(0.001, whole - (time.monotonic() - begin)),
            )
        finally:
            self.cache.keep(fresh)

    def _stats(
        self, seconds: float, scores: Sequence[Score], answers: Sequence[Answer], known: Sequence[Canary]
    ) -> dict[str, float]:
        """What a call says of itself, but for what was asked and what was not."""
        replies = [answer for answer in answers if isinstance(answer, Reply)]
        texts = [reply.texts[0] if isinstance(reply, Reply) and reply.finished[0] else None for reply in answers]
        kinds = Counter(_kind(score.reason) for score in scores if score.reason is not None)
        tokens = {
            f"{what}_tokens": sum(getattr(reply, f"{what}_tokens") for reply in replies) or math.nan
            for what in ("prompt", "completion")
        }
        return {
            "seconds": seconds,
            "num_unscorable": float(kinds.total()),
            **{f"no_verdict/{kind}": float(kinds[kind]) for kind in NO_VERDICT},
            "latency_p50": self.endpoint.stats.latency(0.5) if answers else math.nan,
            "latency_p95": self.endpoint.stats.latency(0.95) if answers else math.nan,
            **tokens,
            "num_canaries": float(len(known)),
            "canary_wrong_accepted": accepted(known, texts[: len(known)], right=False),
            "canary_right_accepted": accepted(known, texts[: len(known)], right=True),
            "breaker_open": float(self.endpoint.breaker.is_open),
            "cache_size": float(len(self.cache)),
        }


def _endpoint_config(config: RLPTConfig, time_limit: float | None) -> EndpointConfig:
    if not config.server or not config.judge_model:
        missing = "server" if not config.server else "judge_model"
        raise UserError(
            f"`{missing}` is not set: `judge: server` needs the judge's address (`server: http://HOST:8000`) and its "
            "name there (`judge_model:`); `judge: rule` needs neither"
        )
    return EndpointConfig(
        config.server,
        config.api_key_env,
        config.max_concurrency,
        config.timeout,
        config.deadline if time_limit is None else min(config.deadline, time_limit),
        config.retries,
        config.breaker_failures,
    )


def _thinking(config: RLPTConfig) -> dict[str, Any]:
    """What servers hand to the judge's chat template, where there is something to say."""
    if config.judge_thinking is None:
        return {}
    return {"chat_template_kwargs": {"enable_thinking": config.judge_thinking}}


def _identity(config: RLPTConfig, template: str | None) -> str:
    """Who judges: the model's name and all that shapes its verdicts, but not where it runs; the words by their hash."""
    words = hashlib.sha256(wording(config, template).encode()).hexdigest()
    settings = [config.judge_model, config.judge_temperature, config.judge_max_tokens, config.judge_thinking]
    return json.dumps([QUOTING, config.reward, words, *settings])


def _score(answer: Answer) -> Score:
    """A verdict, or why there is none."""
    if isinstance(answer, Failure):
        return Score.unscorable(f"judge: {answer.reason}")
    if not answer.finished[0]:
        return Score.unscorable("judge: cut: the answer was not at its end (`judge_max_tokens`)")
    verdict = parse_verdict(answer.texts[0])
    if verdict is None:
        return Score.unscorable(f"judge: unparsable: it said {answer.texts[0][:60]!r}")
    return Score(float(verdict))


def _kind(reason: str) -> str:
    """The kind of a missing verdict, one of NO_VERDICT."""
    name = reason.removeprefix("judge: ").partition(":")[0].replace(" ", "_")
    return name if name in NO_VERDICT else "http" if name.startswith("http") else "other"
