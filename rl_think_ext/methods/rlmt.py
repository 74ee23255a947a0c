"""RLMT, reinforcement learning with model-rewarded thinking (arXiv 2509.20357): settings and equations.

The policy writes a thought z and then an answer y; a preference model scores the answer alone:
max E_x E_(z,y)~pi(.|x) r(y, x). There is no term for format or length; the control is the same run without the thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from rl_think_ext.messages import Message
from rl_think_ext.records import Parts, Status
from rl_think_ext.template import CLOSE_RESPONSE, Mode, Style, split

if TYPE_CHECKING:
    from torch import Tensor

Malformed = Literal["floor", "unscorable", "paper-lenient", "paper-strict"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class RLMTConfig:
    """Settings of RLMT; the defaults are the paper's where it gives one.

    Args:
        style: What the policy writes. think: a thought between its tags, then the answer; none: the answer, the
            control without a thought; response and response-only: the same two for a raw base model, in tags.
        malformed: What an output is worth that has not the form. floor: `floor`; unscorable: nothing, it leaves the
            group; paper-lenient and paper-strict: what the authors' parser takes for its answer is scored.
        floor: The reward of "floor"; without a number it is the lowest score of the batch.
        score: What the reward model is shown: the answer, or the full output with the thought (an ablation).
        reward_model: Folder or hub name. With a server its tokenizer and configuration are read from here.
        backend: Where it runs: local in every process, server over HTTP, auto: a server when one is named, else here
            up to 2 billion weights.
        server: Address of a vLLM server that classifies, for example http://localhost:8000.
        server_model: The model's name there, when it is not `reward_model`.
        api_key_env: The environment variable that holds the server's key.
        dtype: Of the reward model's body in this process; its head is always float32.
        max_length: Tokens of prompt and answer together; without a number the model's own limit. The prompt is cut on
            the left, an answer never.
        max_tokens_per_batch: Tokens in one forward of the reward model, padding included.
        output: Where the score stands in the model's output: logits, or the field `score` of models with own code.
        trust_remote_code: Run code out of the reward model's repository.
        max_concurrency: Requests on their way at once, over all processes.
        timeout: Seconds a request may take.
        deadline: Seconds in which all scores of a batch have to be there; at most 0.45 of the processes' own timeout.
        retries: How often a request is repeated.
        cache_size: Scores that are kept by the very tokens.
        score_noise_share: Share of the pairs that is scored again in another micro-batch to measure noise.
        max_failed_steps: Raise after so many reward calls in a row without one scorable sample.
        instruction_file: A text in place of the words that ask a raw base model for the form.
    """

    style: Style = "think"
    malformed: Malformed = "floor"
    floor: float | None = None
    score: Literal["answer", "full"] = "answer"
    reward_model: str = ""
    backend: Literal["auto", "local", "server"] = "auto"
    server: str | None = None
    server_model: str | None = None
    api_key_env: str | None = None
    dtype: str = "auto"
    max_length: int | None = None
    max_tokens_per_batch: int = 16384
    output: Literal["logits", "score"] = "logits"
    trust_remote_code: bool = False
    max_concurrency: int = 64
    timeout: float = 60.0
    deadline: float = 600.0
    retries: int = 4
    cache_size: int = 65536
    score_noise_share: float = 0.01
    max_failed_steps: int = 3
    instruction_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens_per_batch", "max_concurrency", "max_failed_steps", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is at least 1, got {value}")
        for name in ("timeout", "deadline"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is a number of seconds above 0, got {getattr(self, name)}")
        if self.retries < 0 or self.cache_size < 0 or not 0.0 <= self.score_noise_share <= 1.0:
            raise ValueError("`retries` and `cache_size` are at least 0, `score_noise_share` is from 0 to 1")
        if self.floor is not None and not abs(self.floor) < float("inf"):
            raise ValueError(f"`floor` is a finite number, got {self.floor}")
        if self.floor is not None and self.malformed != "floor":
            raise ValueError(f"`floor: {self.floor}` needs `malformed: floor`, got {self.malformed}")
        if self.backend == "server" and not self.server:
            raise ValueError("`backend: server` needs `server:`, for example http://localhost:8000")
        if self.output == "score" and (self.server or self.backend == "server"):
            raise ValueError("`output: score` is read in this process only: a server gives logits; take `server:` out")
        if self.backend == "local" and self.server:
            raise ValueError("`server:` is not asked with `backend: local`: take one of them out")
        if self.instruction_file and self.style not in ("response", "response-only"):
            raise ValueError(f"`instruction_file` needs style response or response-only, got {self.style}")

    @property
    def mode(self) -> Mode:
        """How outputs are taken apart: the paper's way only where that policy was asked for."""
        return self.malformed if self.malformed in ("paper-lenient", "paper-strict") else "strict"

    @property
    def stop(self) -> str | None:
        """The text at which sampling ends, beside the end of the text; None where nothing has to follow.

        Differs: the authors' training ran on behind it, their evaluation did not.
        """
        return CLOSE_RESPONSE if self.style in ("response", "response-only") else None

    def split(self, text: str, *, finished: bool = True, prefilled: bool = False) -> Parts:
        """Take an output apart as these settings say."""
        return split(text, self.style, self.mode, finished=finished, prefilled=prefilled)


def reward_messages(
    prompt_messages: Sequence[Message], parts: Parts, *, score: str = "answer", text: str | None = None
) -> list[dict[str, str]]:
    """What the reward model is shown: the raw chat and the answer; no template and no thought of the policy.

    Args:
        prompt_messages: The chat, as it was before the policy's template.
        parts: The output, taken apart.
        score: "answer", or "full" for the whole output `text`. Differs: only an ablation shows thoughts.

    Raises:
        ValueError: no answer, or "full" without a text.

    >>> reward_messages([{"role": "user", "content": "2 + 2?"}], Parts("2 and 2", "4", "ok"))[-1]
    {'role': 'assistant', 'content': '4'}
    """
    shown = text if score == "full" else parts.answer
    if shown is None:
        raise ValueError(f"there is nothing to score: {parts.status}")
    chat = [{"role": message["role"], "content": message["content"]} for message in prompt_messages]
    return [*chat, {"role": "assistant", "content": shown}]


def with_floor(scores: Tensor, malformed: Tensor, floor: float | None = None) -> Tensor:
    """Scores in which malformed outputs are worth `floor`, or as little as the worst scored one of the batch.

    Args:
        scores: [B], NaN where there is no score.
        malformed: [B] bool: outputs without the form. Only these are filled: a missing score stays NaN.
        floor: The number; None takes the lowest score of the outputs that have the form. Without any all stay NaN.

    Returns:
        [B], like scores.
    """
    import torch

    scored = scores[~malformed & ~scores.isnan()]
    if floor is None and not len(scored):
        return torch.where(malformed, torch.nan, scores)
    lowest = scored.min() if floor is None else scores.new_tensor(floor)
    return torch.where(malformed, lowest, scores)


def without_noise(scores: Tensor, group_size: int, noise: float) -> Tensor:
    """Scores in which groups that differ by no more than `noise` are equal: they teach nothing (F47).

    Args:
        scores: [B], whole groups one after another, NaN where there is no score.
        noise: The largest difference of a score when it is computed anew; NaN is unknown and taken for 0.
    """
    import torch

    groups = scores.view(-1, group_size)
    high = groups.nan_to_num(nan=-torch.inf).max(-1, keepdim=True).values
    low = groups.nan_to_num(nan=torch.inf).min(-1, keepdim=True).values
    quiet = (high - low <= (noise if noise > 0 else 0.0)) & ~groups.isnan()
    return torch.where(quiet, groups.nanmean(-1, keepdim=True), groups).flatten()
