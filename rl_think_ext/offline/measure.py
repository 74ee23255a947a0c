"""Sample thoughts at every position and score them, part by part: what was killed goes on where it stood.

The longest prompts come first, so that memory runs out at the start or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.offline.bench import Bench
from rl_think_ext.offline.config import GainConfig
from rl_think_ext.offline.rows import Position
from rl_think_ext.offline.store import Store
from rl_think_ext.scoring.gain import Gains
from rl_think_ext.scoring.sample import Request, ThoughtSampler

_THOUGHTS_PER_PART = 512
_NUMBERS = ("reasoned", "baseline", "gain", "accuracy", "baseline_accuracy", "length")


def content_hash(positions: Sequence[Position]) -> str:
    """Sixteen hex digits of everything that is measured: other rows, another tokenizer or target length change them."""
    digest = hashlib.sha256()
    for p in positions:
        digest.update(repr((p.index, p.id, p.prompt, p.context, p.target)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def parts_of(positions: Sequence[Position], num_thoughts: int) -> list[list[Position]]:
    """The positions in parts of some hundred thoughts, longest prompts first; the same for the same positions."""
    order = sorted(positions, key=lambda p: (-len(p.prompt), p.index))
    size = max(1, _THOUGHTS_PER_PART // num_thoughts)
    return [order[i : i + size] for i in range(0, len(order), size)]


def measure(bench: Bench, config: GainConfig, positions: Sequence[Position], store: Store) -> None:
    """Fill a store with the samples of all positions; parts that are there are left alone.

    Raises:
        UserError: not one scorable thought in the first `max_failed_steps` parts.
    """
    from tqdm import tqdm

    num_thoughts, sampler = config.num_thoughts, sampler_of(bench, config)
    parts = parts_of(positions, num_thoughts)
    if store.is_finished:
        return
    missing = [i for i in range(len(parts)) if not store.has(i)]
    # No judgement over what an earlier run kept: one None says that something there may be scorable.
    reasons: list[str | None] = [None] * (len(missing) < len(parts))
    total = len(positions) * num_thoughts
    kept = total - sum(len(parts[i]) for i in missing) * num_thoughts
    # `initial` keeps the rate that of this run.
    with tqdm(total=total, initial=kept, desc="thinking", unit=" thoughts", disable=None) as bar:
        for i in missing:
            part = parts[i]
            rows = list(sample_rows(bench, sampler, part, num_thoughts))
            reasons += [row["unscorable"] for row in rows]
            _give_up(reasons, i + 1, bench.scorer.config.max_failed_steps)
            store.write(i, rows)
            bar.update(len(rows))
    store.finish(len(parts))


def sampler_of(bench: Bench, config: GainConfig) -> ThoughtSampler:
    """What draws the thoughts that a measurement asks for."""
    return ThoughtSampler(
        bench.model,
        bench.tokenizer,
        bench.tags,
        max_tokens=bench.scorer.config.max_tokens_per_batch,
        max_thought_tokens=config.max_thought_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def sample_rows(
    bench: Bench, sampler: ThoughtSampler, positions: Sequence[Position], num_thoughts: int
) -> Iterator[dict[str, Any]]:
    """One row of the store's table for each of `num_thoughts` thoughts at each position."""
    asked = [(p, k) for p in positions for k in range(num_thoughts)]
    # The row and not its id: rows that share one would share their random numbers, and hardly differ.
    completions = sampler([Request(p.prompt, f"{p.index}\0{k}") for p, k in asked])
    rollouts = [
        bench.rollout(p.prompt, p.context, p.target, said) for (p, _), said in zip(asked, completions, strict=True)
    ]
    gains = bench.scorer(rollouts)
    for (p, k), said, numbers in zip(asked, completions, numbers_of(gains), strict=True):
        yield {
            "row": p.index,
            "id": p.id,
            "document": p.document,
            "position": p.start,
            "context": p.row["context"],
            "target": bench.tokenizer.decode(p.target),
            "sample": k,
            "thought": bench.tokenizer.decode(said),
            "thought_ids": said,
            "prompt_ids": p.prompt,
            "context_ids": p.context,
            "target_ids": p.target,
            **numbers,
        }


def numbers_of(gains: Gains) -> Iterator[dict[str, Any]]:
    """The numbers of each sample by name; None where there is none, and then `unscorable` has the reason."""
    columns = [[None if v != v else v for v in gains.column(name).tolist()] for name in _NUMBERS]
    unclosed = gains.column("unclosed").bool().tolist()
    for i, score in enumerate(gains.scores()):
        yield {
            **{name: column[i] for name, column in zip(_NUMBERS, columns, strict=True)},
            "unclosed": unclosed[i],
            "unscorable": score.reason,
            "noise": gains.noise,
        }


def _give_up(reasons: Sequence[str | None], num_parts: int, most: int) -> None:
    if num_parts >= most and None not in reasons:
        found = sorted({str(reason) for reason in reasons})
        raise UserError(f"not one of the first {len(reasons)} thoughts can be scored: {', '.join(found)}")
