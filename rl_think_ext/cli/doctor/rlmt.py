"""RLMT's own checks: the policy's template and stop, the chats, warm start and pairs, and the run's own first look."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

from rl_think_ext.cli.doctor.case import BlockedError, Case, Finding, once
from rl_think_ext.cli.doctor.config import arguments, check_imports, file, method, reward, reward_names
from rl_think_ext.cli.doctor.data import quiet_datasets, rows
from rl_think_ext.cli.doctor.model import outgrown, positions, stops, tokenizer
from rl_think_ext.errors import UserError
from rl_think_ext.template import OPEN_TAG, find_tag

ROWS_READ = 64
REWARD = "rl_think_ext.trl.rlmt"
PROBE = [{"role": "user", "content": "1 + 1 ="}]


@once("the policy's tokenizer")
def policy_tokenizer(case: Case) -> Any:
    """The tokenizer with the chat template that the run would use: for a raw base model the frame.

    Raises:
        UserError: no template, or an instruction file that cannot be read.
    """
    config, given = method(case)[0], arguments(case)
    if file(case).trainer != "grpo":
        from rl_think_ext.trl.rlmt_supervised import policy_tokenizer as supervised

        return supervised(given, config)
    found = tokenizer(case)
    if config.stop and not file(case).stock:
        from rl_think_ext.formats import read_instruction, zero_chat_template

        words = read_instruction(config.instruction_file)
        found.chat_template = zero_chat_template(config.style, words, tokenizer=found)
    elif not config.stop:
        from rl_think_ext.scoring.chat_prompt import chat_prompt

        chat_prompt(found, PROBE)
    return found


def chat_of(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """What the reward model is to see of a row: its prompt, or `messages` where the prompt is a frame around it.

    Raises:
        UserError: a text without a chat beside it, or contents that are no text (F32).
    """
    from rl_think_ext.messages import messages_of

    if not isinstance(row["prompt"], str):
        return messages_of(row["prompt"], f"{where}, column `prompt`")
    if row.get("messages") is None:
        raise UserError(
            f"{where}: column `prompt` is text, and there is no column `messages` with the chat that the reward model "
            "is to see"
        )
    return messages_of(row["messages"], f"{where}, column `messages`")


def prompt_ids(case: Case, row: Mapping[str, Any]) -> list[int]:
    """The ids that the policy reads for a row, as GRPOTrainer makes them."""
    return templated_ids(case, policy_tokenizer(case), row["prompt"])


def templated_ids(case: Case, coder: Any, prompt: Any) -> list[int]:
    """The ids of a prompt, a text or a chat, as GRPOTrainer makes them."""
    if isinstance(prompt, str):
        return list(coder(prompt)["input_ids"])
    given = getattr(arguments(case).args, "chat_template_kwargs", None) or {}
    text = coder.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **given)
    return list(coder(text, add_special_tokens=False)["input_ids"])


def head(case: Case) -> list[tuple[str, dict[str, Any]]]:
    """The first rows, each with the words that name it."""
    return [(f"row {row.get('id') or i}", dict(row)) for i, row in enumerate(islice(rows(case), ROWS_READ))]


def check_template(case: Case) -> Iterator[Finding]:
    """The template that the policy is asked in, and whether it opens the thought."""
    if found := outgrown(case, "template"):
        yield from found
        return
    with warned() as caught:
        coder = policy_tokenizer(case)
    config, trainer = method(case)[0], file(case).trainer
    yield from as_findings(caught, "template")
    if config.stop:
        frame = "the dataset's own text" if file(case).stock else "the frame of a raw base model, no copy of the model"
        yield Finding("ok", "template", f"Style {config.style}: {frame}; {_stop(case)}.")
        return
    from rl_think_ext.scoring.chat_prompt import chat_prompt

    prompt = chat_prompt(coder, PROBE)
    opened = prompt.rstrip().endswith(OPEN_TAG)
    how = f"the prompt ends with {OPEN_TAG} (prefilled)" if opened else f"{OPEN_TAG} is the policy's to write"
    if opened and config.style == "none":
        found_it = f"The policy's chat template ends with {OPEN_TAG}, and style none is to have no thought."
        yield Finding("broken", "template", found_it, "Give a `chat_template` without it, or `style: think`.")
        return
    ends = f"; sampling ends at {stops(case)}" if trainer == "grpo" else ""
    what = how if config.style == "think" else "no tags"
    yield Finding("ok", "template", f"Style {config.style} in the policy's own chat template: {what}{ends}.")


def _stop(case: Case) -> str:
    config, args = method(case)[0], arguments(case).args
    sampler = "vLLM" if getattr(args, "use_vllm", False) else "transformers"
    return f"sampling through {sampler} is to stop at {config.stop}"


def check_dataset_rows(case: Case) -> Iterator[Finding]:
    """The first rows as the trainer would make them, and their lengths."""
    yield from (_check_prompts if file(case).trainer == "grpo" else _check_examples)(case)


@once("the first rows")
def chats(case: Case) -> list[list[dict[str, str]]]:
    """The first rows' chats, of which the longest has room in the policy.

    Raises:
        UserError: a row without a chat, or without room.
    """
    completion, room, found = arguments(case).args.max_completion_length, positions(case), []
    for where, row in head(case):
        found.append(chat_of(row, where))
        check_room(where, len(prompt_ids(case, row)), completion, room, "drop long prompts (`rl-think data rlmt`)")
    return found


def check_room(where: str, length: int, completion: int | None, room: int | None, way_out: str) -> None:
    """Refuse a prompt behind which an output has no room.

    Raises:
        UserError: naming the numbers, and the way out beside fewer tokens of output.
    """
    if room and completion and length + completion > room:
        raise UserError(
            f"{where}: a prompt of {length} tokens and max_completion_length {completion} do not fit into the "
            f"model's {room} positions: lower max_completion_length, or {way_out}"
        )


def _check_prompts(case: Case) -> Iterator[Finding]:
    from rl_think_ext.cli.doctor.reward import template

    found, completion, room = chats(case), arguments(case).args.max_completion_length, positions(case)
    for (where, _), chat in zip(head(case), found, strict=True):
        tag = next((tag for message in chat if (tag := find_tag(message["content"]))), None)
        if tag:
            said = f"{where} holds the tag {tag!r}: the policy may repeat it."
            yield Finding("warn", "rows", said, "`rl-think data rlmt` leaves such rows out.")
    longest = max(len(prompt_ids(case, row)) for _, row in head(case))
    fits = f"they fit into {room} positions with outputs of {completion}" if room else "the model names no limit"
    yield Finding("ok", "rows", f"The first {len(found)} rows are chats of up to {longest} tokens; {fits}.")
    with contextlib.suppress(BlockedError, UserError):  # the check of the reward model says it
        yield from _cut(template(case), found)


def _cut(template: Any, chats: Sequence[list[dict[str, str]]]) -> Iterator[Finding]:
    """Prompts that the reward model cannot read whole, even before an answer."""
    found = [template.encode([*chat, {"role": "assistant", "content": "."}]) for chat in chats]
    num = sum(getattr(one, "num_cut", 0) > 0 for one in found)
    if num:
        said = (
            f"Of the first {len(chats)} prompts {num} have no room in the reward model's {template.max_length} tokens."
        )
        yield Finding("warn", "rows", said, "They would be cut on the left: drop them (`rl-think data rlmt`).")


def _check_examples(case: Case) -> Iterator[Finding]:
    """Warm start and pairs: the first rows rendered as the trainer renders them; what is too long is left out."""
    num, kept = len(head(case)), examples(case, [row for _, row in head(case)])
    limit = arguments(case).args.max_length
    if len(kept) < num:
        found = f"Of the first {num} rows {num - len(kept)} are longer than max_length {limit} and would be left out."
        yield Finding("warn", "rows", found, "Raise `max_length:` where the model has room for it.")
    style = method(case)[0].style
    yield Finding("ok", "rows", f"{len(kept)} of the first {num} rows make examples of style {style} within {limit}.")


def examples(case: Case, given: list[dict[str, Any]]) -> Any:
    """Rows as the supervised trainer would see them.

    Raises:
        UserError: a row that makes no output of the style, or a template that changes it.
    """
    from datasets import Dataset

    from rl_think_ext.trl.rlmt_supervised import dpo_rows, sft_rows

    render = sft_rows if file(case).trainer == "sft" else dpo_rows
    style, args = method(case)[0].style, arguments(case).args
    # It says aloud how many rows are too long; the findings say so, too.
    with quiet_datasets(), contextlib.redirect_stdout(io.StringIO()):
        return render(Dataset.from_list(given), style, policy_tokenizer(case), args)


def check_start(case: Case) -> Iterator[Finding]:
    """What the reward itself looks at when it meets the trainer: keys, further rewards, stop, template."""
    if file(case).trainer != "grpo":
        return
    it, given, names = file(case), arguments(case), reward_names(case)
    chats(case)
    if not method(case)[0].reward_model:
        raise BlockedError("the reward model")
    broken = broken_imports(names, REWARD)
    yield from broken
    if broken:
        return
    from rl_think_ext.trl import rlmt_checks
    from rl_think_ext.trl.rlmt_reward import PreferenceScore

    run, config = stand_in(case, PreferenceScore, names), method(case)[0]
    run.use_transformers_continuous_batching = getattr(given.args, "use_transformers_continuous_batching", False)
    run.generation_kwargs = given.args.generation_kwargs or {}
    if not it.stock:
        # A mark of RLMTTrainer, which tells its sampler to stop.
        run.rlmt = config
        _tell(run, config)
    with warned() as caught:
        rlmt_checks.check_run(run, config, policy_tokenizer(case))
    yield from as_findings(caught, "start")
    yield started(it.stock, names, REWARD)


def broken_imports(names: Sequence[str], own: str) -> list[Finding]:
    """Further rewards that cannot be imported."""
    further = [name for name in names if not name.startswith(own)]
    return [finding for finding in check_imports(further) if finding.state == "broken"]


def stand_in(case: Case, kind: type, names: Sequence[str]) -> SimpleNamespace:
    """What the reward's own checks look at of a trainer, before there is one.

    Raises:
        UserError: the reward of another method.
    """
    from rl_think_ext.trl.launch import check_methods

    it, args = file(case), arguments(case).args
    if not it.stock:
        check_methods(names, it.method)
    rewards = [reward(name) for name in names]
    if not it.stock and not any(isinstance(one, kind) for one in rewards):
        rewards = [kind(), *rewards]
    run = SimpleNamespace(
        args=args, reward_funcs=rewards, train_dataset=rows(case), eos_token_ids=stops(case), use_vllm=args.use_vllm
    )
    if not it.stock:
        # A mark of our trainers, which form rewards of several kinds themselves.
        run.forms_advantage = True
    return run


def started(stock: bool, names: Sequence[str], own: str) -> Finding:
    """That the reward takes the settings, and which rewards there are."""
    named = ", ".join(names if stock else [own, *(name for name in names if name != own)])
    return Finding("ok", "start", f"The reward takes these settings; rewards in their order: {named}.")


def _tell(run: Any, config: Any) -> None:
    """What RLMTTrainer tells vLLM before it is built."""
    if run.use_vllm and config.stop:
        from rl_think_ext.trl.rlmt_trainer import tell_vllm_to_stop

        tell_vllm_to_stop(run.args, config.stop)


@contextlib.contextmanager
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield caught


def as_findings(caught: Sequence[warnings.WarningMessage], name: str) -> Iterator[Finding]:
    for text in dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning)):
        yield Finding("warn", name, f"{text.rstrip('.')}.", "Change what it names, or know why you want it.")
