"""RLPT's own checks: tags through the tokenizer, the judge, the rows and their room, and the run's own first look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rl_think_ext.cli.doctor.case import Case, Finding, once
from rl_think_ext.cli.doctor.config import arguments, file, method, reward_names
from rl_think_ext.cli.doctor.data import rows
from rl_think_ext.cli.doctor.model import outgrown, positions, stops, tokenizer
from rl_think_ext.cli.doctor.reward import server_findings
from rl_think_ext.cli.doctor.rlmt import (
    as_findings,
    broken_imports,
    check_room,
    head,
    stand_in,
    started,
    templated_ids,
    warned,
)
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_PREDICTION, OPEN_PREDICTION

REWARD = "rl_think_ext.trl.rlpt"


def check_tags(case: Case) -> Iterator[Finding]:
    """Whether a prediction comes out of the tokenizer as it went in, and as how many tokens its tags are written."""
    from rl_think_ext.scoring.prediction_prompt import check_tags as survives

    if found := outgrown(case, "tags"):
        yield from found
        return
    coder = tokenizer(case)
    survives(coder)
    counts = [len(coder.encode(tag, add_special_tokens=False)) for tag in (OPEN_PREDICTION, CLOSE_PREDICTION)]
    written = "one token each" if counts == [1, 1] else f"{counts[0]} and {counts[1]} tokens"
    ends = f"sampling ends at {stops(case)}"
    yield Finding("ok", "tags", f"{OPEN_PREDICTION} and {CLOSE_PREDICTION} survive decoding, as {written}; {ends}.")


@once("the judge")
def judge(case: Case) -> Any:
    """The judge as the run would make it; a server is asked at the first call.

    Raises:
        UserError: what it cannot be.
    """
    from rl_think_ext.scoring.judge import load_judge

    return load_judge(method(case)[0])


def check_judge(case: Case) -> Iterator[Finding]:
    """Who judges; the address, key, prompt and cache of a server's judge as far as that can be told without asking."""
    config = method(case)[0]
    if config.judge == "rule":
        said = "begin those of the reference" if config.reward == "prefix" else "are those of the segment"
        yield Finding("ok", "judge", f"The rule: the words of a prediction {said}; no paraphrase is right.")
        return
    judge(case)
    prompt = f"the prompt in {config.judge_prompt}" if config.judge_prompt else "the prompt of this package"
    kept = f"verdicts kept in {config.cache_file}" if config.cache_file else "verdicts kept for this run"
    canaries = f"{config.num_canaries} canaries a batch" if config.num_canaries else "no canaries"
    yield Finding("ok", "judge", f"{config.judge_model}, reward {config.reward}, {prompt}; {kept}; {canaries}.")
    if not config.num_canaries:
        text = "Without canaries nobody sees when the judge is talked round."
        yield Finding("warn", "canaries", text, "Say `num_canaries: 4`.")
    yield from server_findings(case, config, config.judge_model, "one prediction")


@once("the first rows")
def segments(case: Case) -> list[Any]:
    """The first rows' segments, of which the longest prompt has room in the policy.

    Raises:
        UserError: a row that is none of RLPT, or without room.
    """
    from rl_think_ext.data.segment_rows import segment_of
    from rl_think_ext.trl import rlpt_checks

    completion, room, found = arguments(case).args.max_completion_length, positions(case), []
    for where, row in head(case):
        found.append(segment_of(row, where))
        rlpt_checks.check_row(row, where, tokenizer(case))
        length = len(templated_ids(case, tokenizer(case), row["prompt"]))
        check_room(where, length, completion, room, "give `rl-think data rlpt` a lower cap of tokens")
    return found


def check_rows(case: Case) -> Iterator[Finding]:
    """The first rows: their tasks, their references, their lengths."""
    found, completion, room = segments(case), arguments(case).args.max_completion_length, positions(case)
    longest = max(len(templated_ids(case, tokenizer(case), row["prompt"])) for _, row in head(case))
    fits = f"they fit into {room} positions with outputs of {completion}" if room else "the model names no limit"
    tasks = ", ".join(f"{num} of {task}" for task, num in sorted(Counter(one.task for one in found).items()))
    yield Finding("ok", "rows", f"The first {len(found)} rows are {tasks}, up to {longest} tokens; {fits}.")
    yield from _shown_twice(found)
    least = method(case)[0].max_prediction_chars
    long = sum(len(one.reference.first) > least for one in found)
    if long:
        text = f"Of the first {len(found)} targets {long} are longer than max_prediction_chars {least}."
        yield Finding("warn", "rows", text, "A whole prediction of them would be wrong: raise `max_prediction_chars:`.")


def _shown_twice(found: list[Any]) -> Iterator[Finding]:
    """References of MSR that run into what the prompt shows: copying it would be paid."""
    num = sum(one.task == "msr" and one.next_segment.strip() in one.reference.text for one in found)
    if num:
        text = f"Of the first {len(found)} rows {num} have a reference that holds the next segment, which MSR shows."
        yield Finding("warn", "rows", text, "Copying it is paid: build the data with references that stop before it.")


def check_start(case: Case) -> Iterator[Finding]:
    """What the reward itself looks at when it meets the trainer: keys, further rewards, lambda, tags, rows."""
    it, names = file(case), reward_names(case)
    segments(case)
    broken = broken_imports(names, REWARD)
    yield from broken
    if broken:
        return
    from rl_think_ext.trl import rlpt_checks
    from rl_think_ext.trl.rlpt_reward import PredictionScore

    run = stand_in(case, PredictionScore, names)
    run.weighs_tasks = not it.stock
    run.train_dataset = rows(case)
    with warned() as caught:
        rlpt_checks.check_run(run, method(case)[0], tokenizer(case))
    yield from as_findings(caught, "start")
    yield started(it.stock, names, REWARD)


def where_of(row: Any, number: int) -> str:
    """The words that name a row."""
    return f"row {row.get('id') or number}"


def prompt_of(case: Case, row: Any, where: str) -> list[int]:
    """The ids that the policy reads for a row.

    Raises:
        UserError: a row without a prompt.
    """
    if row.get("prompt") is None:
        raise UserError(f"{where}: there is no column `prompt`")
    return templated_ids(case, tokenizer(case), row["prompt"])
