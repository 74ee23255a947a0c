"""One row of a warm start, or of preference pairs, as the trainer reads it: which of its text is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl_think_ext.cli.doctor.case import Case
from rl_think_ext.cli.doctor.config import arguments, file, method
from rl_think_ext.cli.doctor.live import row_of
from rl_think_ext.cli.doctor.rlmt import examples, policy_tokenizer
from rl_think_ext.errors import UserError


@dataclass(frozen=True)
class Side:
    """What the model is to write, in its own template: its name, its text, how many ids, and its form."""

    name: str
    text: str
    num_tokens: int
    status: str


@dataclass(frozen=True)
class Example:
    """A row: the prompt's text, with how many ids, and the sides that are trained; `loss` says how."""

    row: str
    source: str
    prompt: str
    num_prompt_tokens: int
    sides: tuple[Side, ...]
    loss: str


def look(case: Case, number: int) -> Example:
    """Render a row as the trainer would.

    Raises:
        UserError: no such row, one that makes no example, or one that is too long.
    """
    row = dict(row_of(case, number))
    where = f"row {row.get('id') or number}"
    (made,) = examples(case, [row])
    coder, trainer = policy_tokenizer(case), file(case).trainer
    prompt = str(coder.apply_chat_template(made["prompt"], add_generation_prompt=True, tokenize=False))
    names = ("completion",) if trainer == "sft" else ("chosen", "rejected")
    sides = tuple(_side(case, coder, name, prompt, made) for name in names)
    args = arguments(case).args
    return Example(
        row=where,
        source=f"{arguments(case).script.dataset_name}, under {file(case).command} (trainer: {trainer})",
        prompt=prompt,
        num_prompt_tokens=len(coder.encode(prompt, add_special_tokens=False)),
        sides=sides,
        loss=_loss(trainer, args),
    )


def _loss(trainer: str, args: Any) -> str:
    limit = f"at most {args.max_length:,} tokens a row" if args.max_length else "rows of any length"
    if trainer == "dpo":
        return f"the chosen output over the rejected one, beta {args.beta}; {limit}"
    if getattr(args, "completion_only_loss", None) is False:
        return f"prompt and output (completion_only_loss: false); {limit}"
    return f"the output alone, not the prompt; {limit}"


def _side(case: Case, coder: Any, name: str, prompt: str, made: Any) -> Side:
    from rl_think_ext.template import split

    text = str(coder.apply_chat_template(made["prompt"] + made[name], tokenize=False))
    if not text.startswith(prompt):
        raise UserError(
            "the chat template writes another prompt once there is an answer: the trained part has no beginning. Give "
            "one whose generation prompt is how an assistant's turn begins (`chat_template_path:`)"
        )
    said = text[len(prompt) :]
    status = split(made[name][-1]["content"], method(case)[0].style).status
    return Side(name, said, len(coder.encode(said, add_special_tokens=False)), status)
