"""Log-probs of given targets under the weights of verl's workers: what scoring.likelihood says, asked by the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_think_ext.scoring.likelihood import Query, Scored, check_queries
from rl_think_ext.verl.targets import FIELDS, Row, pack
from rl_think_ext.verl.worker import POLICY

Ids = tuple[int, ...]


class Sampled(NamedTuple):
    """What was sampled behind a prompt, and what is to be predicted behind it, or None."""

    prompt: Ids
    response: Ids
    query: Query | None


class Response(NamedTuple):
    """What the policy says of the ids behind each id of prompt and response, at the sampling temperature, in nats."""

    logprob: Tensor
    entropy: Tensor


class RemoteLikelihood:
    """Scores queries as `scoring.likelihood.Likelihood` does, through a method of the actor's workers.

    Args:
        score: Sends what `targets.pack` made to the workers and brings their answer, in the same order.
        dp_size: Workers that each take a share of the rows; all shares have as many.
        max_tokens: Tokens of one forward; a longer row goes alone.
        max_length: Positions that the model has, or None.
    """

    def __init__(
        self,
        score: Callable[[TensorDict], TensorDict],
        dp_size: int,
        max_tokens: int,
        max_length: int | None = None,
    ) -> None:
        self.score, self.dp_size, self.max_tokens, self.max_length = score, dp_size, max_tokens, max_length
        self._weights = POLICY
        self._ready: dict[Query, Tensor] = {}

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """Inside, an average's weights answer."""
        before, self._weights = self._weights, name
        try:
            yield
        finally:
            self._weights = before

    def __call__(self, queries: Sequence[Query], forbid_first: int | None = None) -> Scored:
        """Log-probs of the targets, plain and with one id ruled out at each row's first target.

        Equal rows are scored once (F47). What `respond` found beside the responses is handed out once and forgotten:
        whoever asks again, to measure the noise, gets a forward of its own.

        Raises:
            ValueError: an empty prefix or target, naming the row.
        """
        check_queries(queries)
        unique = list(dict.fromkeys(queries))
        found = {}
        if forbid_first is None and self._weights == POLICY:
            found, self._ready = self._ready, {}
        missing = [query for query in unique if query not in found]
        if missing:
            rows = [Row(q.prefix + q.target, len(q.target)) for q in missing]
            answer = self._forward(rows, 1.0, False, forbid_first)
            found = found | dict(zip(missing, _scores(answer, rows), strict=True))
        out = torch.full(
            (len(Scored._fields), len(queries), max((len(q.target) for q in queries), default=0)), torch.nan
        )
        for i, query in enumerate(queries):
            out[:, i, : len(query.target)] = found[query]
        return Scored(*out)

    def respond(self, sampled: Sequence[Sampled], temperature: float) -> list[Response]:
        """What the policy says of responses; in the same forward, of the targets that stand right behind them.

        A row's targets are scored in it where its query's prefix begins with prompt and response. The other queries
        (an end of text that was sampled is no part of a thought) are left to the call that asks for them.
        """
        assert self._weights == POLICY
        rows = [self._row(one) for one in sampled]
        answer = self._forward(rows, temperature, True, None)
        for one, row, scores in zip(sampled, rows, _scores(answer, rows), strict=True):
            if one.query is not None and row.num_targets:
                self._ready.setdefault(one.query, scores)
        lengths = [len(one.prompt) + len(one.response) for one in sampled]
        return [
            Response(logprob[:length], entropy[:length])
            for length, logprob, entropy in zip(lengths, answer["log_probs"], answer["entropy"], strict=True)
        ]

    def _row(self, one: Sampled) -> Row:
        shown, query = one.prompt + one.response, one.query
        if query is None or query.prefix[: len(shown)] != shown:
            return Row(shown, 0)
        row = Row(query.prefix + query.target, len(query.target))
        # The method will say that it is too long; the model is not asked.
        return Row(shown, 0) if self.max_length is not None and row.length > self.max_length else row

    def _forward(
        self, rows: Sequence[Row], temperature: float, whole: bool, forbid_first: int | None
    ) -> dict[str, list[Tensor]]:
        """The workers' answers, a list of [length] tensors per field, in the order of the rows."""
        order = deal([row.length for row in rows], self.dp_size)
        shortest = min(rows, key=lambda row: row.length)
        sent = [shortest if i is None else rows[i] for i in order]
        data = pack(
            sent,
            weights=self._weights,
            forbid_first=-1 if forbid_first is None else forbid_first,
            whole=whole,
            temperature=temperature,
            use_dynamic_bsz=True,
            max_token_len_per_gpu=max(self.max_tokens, *(row.length for row in sent)),
        )
        output = self.score(data)
        found: dict[str, list[Tensor]] = {}
        for name in (*FIELDS, "log_probs", "entropy") if whole else FIELDS:
            answers = dict(zip(order, output[name].unbind(), strict=True))
            found[name] = [answers[i].float().cpu() for i in range(len(rows))]
        return found


def _scores(answer: dict[str, list[Tensor]], rows: Sequence[Row]) -> list[Tensor]:
    """The fields of Scored for each row, [3, targets]: they stand at its end."""
    fields = zip(*(answer[name] for name in FIELDS), strict=True)
    return [torch.stack(one)[:, row.length - row.num_targets :] for one, row in zip(fields, rows, strict=True)]


def deal(lengths: Sequence[int], shares: int) -> list[int | None]:
    """Row numbers in the order in which they are sent: `shares` shares of equal size, about as long each.

    None stands for a row that only fills a share up.

    >>> deal([5, 1, 4], 2)
    [0, None, 2, 1]
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    order: list[int | None] = [*longest_first]
    order += [None] * (-len(order) % shares)
    dealt: list[list[int | None]] = [[] for _ in range(shares)]
    for turn in range(0, len(order), shares):
        # Whoever got the longest of this turn gets the shortest of the next one.
        ways = dealt if turn // shares % 2 == 0 else dealt[::-1]
        for share, i in zip(ways, order[turn : turn + shares], strict=True):
            share.append(i)
    return [i for share in dealt for i in share]
