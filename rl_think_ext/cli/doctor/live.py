"""One row as a training step would treat it: read, sampled, closed and scored, with every id kept to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from rl_think_ext.cli.doctor.boundary import Part, Remark, parts, remarks
from rl_think_ext.cli.doctor.case import Case
from rl_think_ext.cli.doctor.config import arguments, file, method
from rl_think_ext.cli.doctor.data import reader, rows
from rl_think_ext.cli.doctor.model import folder, positions, stops, tokenizer
from rl_think_ext.data.reader import Ids
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_TAG, TagIds, canonical_closing, close_thought, find

if TYPE_CHECKING:
    from torch import Tensor

    from rl_think_ext.scoring.gain import GainScorer, Rollout

# GRPOTrainer's arguments that it hands on to `generate`.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")


@dataclass(frozen=True)
class Target:
    """A scored token: log-probs in nats with the thought, without it (opening tag ruled out, left in), and the gain."""

    id: int
    text: str
    reasoned: float
    baseline: float
    unmasked: float
    gain: float


@dataclass(frozen=True)
class Live:
    """What became of one row.

    `reward` is the gain in nats, None with `reason` where it cannot be scored; `status` is what the splitter said of
    the thought, `num_sampled` the tokens that are trained, `closed` whether the policy closed it by itself. `remarks`
    are sentences on boundaries that move or stay (F31).
    """

    row: str
    source: str
    sampler: str
    parts: tuple[Part, ...]
    status: str
    num_sampled: int
    closed: bool
    completion: Ids
    targets: tuple[Target, ...]
    reward: float | None
    reason: str | None
    method: str
    remarks: tuple[Remark, ...]


def sample(case: Case, number: int) -> Live:
    """Treat a row of the run's dataset as the first training step would.

    The averages are equal to the policy at the first step, so one set of weights gives every number.

    Raises:
        UserError: no such row, or a row, model or tokenizer that cannot be used.
    """
    it, args, config = file(case), arguments(case).args, method(case)[0]
    read, row = reader(case), row_of(case, number)
    where = f"row {row.get('id') or number}"
    context, target = read.context(row, where), read.target(row, where)
    prompt = read.prompt(row, context, where)
    # The stock trainer encodes the prompt's text, whatever ids the row brings.
    shown = tuple(read.tokenizer(row["prompt"])["input_ids"]) if it.stock else prompt
    model, ends = policy(case), ends_of(case)
    completion = generate(model, shown, _sampler(case, ends), args.seed + number)
    closing = canonical_closing(completion, read.tags, read.tokenizer)
    thought = close_thought(closing, read.tags, ends, config.elicit == "prefill")
    from rl_think_ext.scoring.gain import Rollout

    rollout = Rollout(prompt, context, target, thought)
    targets, reward, reason = _score(case, model, rollout, read.tags)
    closed = find(closing, read.tags.close) >= 0
    whole = replace(read, config=replace(config, num_target_tokens=2**31)).target(row, where)
    return Live(
        row=where,
        source=f"{arguments(case).script.dataset_name}, under {it.command}",
        sampler=f"temperature {args.temperature}, at most {args.max_completion_length} tokens, ends at {ends}",
        parts=parts(read.tokenizer, read.tags, rollout, closed, whole[len(target) :]),
        status=thought.status,
        num_sampled=thought.num_sampled,
        closed=closed,
        completion=tuple(completion),
        targets=targets,
        reward=reward,
        reason=reason,
        method=f"{config.aggregate} over {config.num_target_tokens} target(s), baseline {config.baseline}",
        remarks=tuple(remarks(read.tokenizer, rollout, shown)),
    )


def row_of(case: Case, number: int) -> Mapping[str, Any]:
    """A row of the run's dataset.

    Raises:
        UserError: no such row.
    """
    there = rows(case)
    if number < 0 or (hasattr(there, "__len__") and number >= len(there)):
        raise UserError(f"--row {number}: the dataset has the rows 0 to {len(there) - 1}")
    found = there[number] if hasattr(there, "__len__") else next(islice(there, number, None), None)
    if found is None:
        raise UserError(f"--row {number}: the dataset is shorter")
    return dict(found)


def policy(case: Case) -> Any:
    """The policy with its weights, where the run would compute."""
    import torch

    from rl_think_ext.scoring.load import load_model

    given = arguments(case)
    trusted = bool(given.args.trust_remote_code)
    model = load_model(str(folder(case)), dtype=str(given.model.dtype), trust_remote_code=trusted)
    return model.to("cuda" if torch.cuda.is_available() and not given.args.use_cpu else "cpu")


def ends_of(case: Case) -> list[int]:
    """The ids at which the trainer's sampler would end; ThinkGRPOTrainer adds the closing tag."""
    ends, tags = stops(case), TagIds.of(tokenizer(case))
    return [*ends, *(i for i in tags.close if tags.single and not file(case).stock and i not in ends)]


def _sampler(case: Case, ends: list[int]) -> dict[str, Any]:
    """GRPOTrainer's arguments of `generate`; vLLM's stop string becomes transformers' own."""
    args, coder = arguments(case).args, tokenizer(case)
    chosen = {name: getattr(args, name) for name in SAMPLING}
    given = {"stop_strings": [CLOSE_TAG], "tokenizer": coder} if args.use_vllm else args.generation_kwargs or {}
    ids = {"eos_token_id": ends, "pad_token_id": coder.pad_token_id, "bos_token_id": coder.bos_token_id}
    return {"do_sample": True, "max_new_tokens": args.max_completion_length, **ids, **chosen, **given}


def generate(model: Any, prompt: Sequence[int], sampler: Mapping[str, Any], seed: int) -> list[int]:
    """The ids of one sampled completion; the global random state is left alone."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        ids = torch.tensor([list(prompt)], device=model.device)
        sampled = model.generate(ids, attention_mask=torch.ones_like(ids), **sampler)
    return [int(i) for i in sampled[0, len(prompt) :]]


def _score(
    case: Case, model: Any, rollout: Rollout, tags: TagIds
) -> tuple[tuple[Target, ...], float | None, str | None]:
    """Each target's log-probs, and the reward as the trainer gets it."""
    import torch

    from rl_think_ext.scoring.gain import GainScorer
    from rl_think_ext.scoring.likelihood import Likelihood

    config, coder = method(case)[0], tokenizer(case)
    half = partial(torch.autocast, model.device.type, dtype=torch.bfloat16)
    autocast = half if arguments(case).args.bf16 else nullcontext
    likelihood = Likelihood(model, coder.pad_token_id, config.max_tokens_per_batch, autocast, model.device)
    scorer = GainScorer(config, likelihood, tags, max_length=positions(case))
    score = scorer([rollout]).scores()[0]
    if not rollout.target or score.reason == "longer than the model":
        return (), None, score.reason
    reasoned, masked, plain = _target_rows(scorer, rollout)
    other = torch.zeros_like(plain) if config.baseline == "none" else masked if config.baseline_mask_open_tag else plain
    columns = [values[0].tolist() for values in (reasoned, masked, plain, reasoned - other)]
    targets = [Target(i, coder.decode([i]), *row) for i, *row in zip(rollout.target, *columns, strict=True)]
    return tuple(targets), score.value, score.reason


def _target_rows(scorer: GainScorer, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the targets behind the thought, without it, and without it but with the opening tag left in."""
    from rl_think_ext.scoring.gain import without_tag
    from rl_think_ext.scoring.likelihood import Query

    likelihood, tags = scorer.likelihood, scorer.tags
    reasoned = likelihood([Query(rollout.prompt + rollout.thought.ids, rollout.target)]).logprob
    query = Query(rollout.context, rollout.target)
    single = len(tags.open) == 1
    without = likelihood([query], tags.open[0] if single else None)
    masked = without.restricted
    if not single:
        tag = likelihood([Query(rollout.context, tags.open)]).logprob
        masked = without_tag(without.logprob, [rollout.target], tag, tags.open)
    return reasoned, masked, without.logprob
