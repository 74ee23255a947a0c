"""Warm start and preference pairs as TRL's SFTTrainer and DPOTrainer take them; nothing is cut that was not said.

TRL's own limit of 1,024 tokens would cut most plans in the middle of their answer, silently. Here the limit is the
paper's, set before the trainer reads its data, and a row above it is left out whole and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import DPOConfig, SFTConfig

from rl_think_ext.errors import UserError
from rl_think_ext.formats import read_instruction, zero_chat_template
from rl_think_ext.messages import messages_of
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import chat_prompt, check_end_of_turn
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.template import OPEN_TAG, Style, join, split
from rl_think_ext.trl import checks

_LIMIT = "Tokens of a row, the prompt included. A longer row is left out and counted, never cut."


@dataclass
class ThinkSFTConfig(SFTConfig):
    """SFTConfig with the paper's length limit."""

    max_length: int | None = field(default=20_000, metadata={"help": _LIMIT})


@dataclass
class ThinkDPOConfig(DPOConfig):
    """DPOConfig with the paper's length limit."""

    max_length: int | None = field(default=4_096, metadata={"help": _LIMIT})


def policy_tokenizer(given: Any, rlmt: RLMTConfig | None = None) -> Any:
    """The tokenizer of the run, with the chat template that it will be trained in: for a raw base model the frame.

    Raises:
        UserError: no tokenizer or no template there.
    """
    tokenizer = load_tokenizer(given.model.model_name_or_path, trust_remote_code=given.args.trust_remote_code)
    path = getattr(given.args, "chat_template_path", None)
    if path and Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    elif path:
        tokenizer.chat_template = load_tokenizer(path).chat_template
    elif rlmt is not None and rlmt.stop:
        # Pairs of a raw base model were sampled in the frame; a template of its own would train another prompt.
        words = read_instruction(rlmt.instruction_file)
        tokenizer.chat_template = zero_chat_template(rlmt.style, words, tokenizer=tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    chat_prompt(tokenizer, messages_of("1 + 1 =", "the probe"))
    ends = [tokenizer.eos_token_id]
    if own := getattr(given.args, "eos_token", None):
        ends.append(tokenizer.convert_tokens_to_ids(own))
    checks.warn_all(check_end_of_turn(tokenizer, ends))
    return tokenizer


def sft_rows(rows: Any, style: Style, tokenizer: Any, args: Any) -> Any:
    """The rows of `rl-think data rlmt-sft` as prompt and completion: with the thought, or for the control without it.

    Raises:
        UserError: a style of raw base models, a row that makes no output of its style, a template that changes it.
    """
    if style not in ("think", "none"):
        raise UserError(f"style {style} is that of a raw base model, which has no warm start: take think or none")
    if getattr(args, "packing", False) and args.packing_strategy == "wrapped":
        raise UserError("packing_strategy: wrapped cuts rows in two wherever a pack is full: take `bfd`")
    if style == "think" and "thought" not in rows.column_names:
        raise UserError(f"the dataset has no column `thought`; there are {', '.join(rows.column_names)}")

    def render(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        where = f"row {row.get('id') or index}"
        try:
            target = join(row.get("thought"), row["answer"], style)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: {error}") from error
        chat = messages_of(row["prompt"], f"{where}, column `prompt`")
        return _measured({"prompt": chat, "completion": [{"role": "assistant", "content": target}]}, tokenizer, where)

    made = rows.map(render, with_indices=True, remove_columns=rows.column_names, desc="rendering")
    return _within(made, args.max_length)


def dpo_rows(rows: Any, style: Style, tokenizer: Any, args: Any) -> Any:
    """The rows of `rl-think data rlmt-dpo`, both sides whole outputs of the style.

    Raises:
        UserError: a row whose sides are no outputs of this style, or a template that changes them.
    """

    def render(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        where = f"row {row.get('id') or index}"
        chat = messages_of(row["prompt"], f"{where}, column `prompt`")
        sides = {}
        for name in ("chosen", "rejected"):
            side = row[name] if not isinstance(row[name], str) else [{"role": "assistant", "content": row[name]}]
            sides[name] = messages_of(side, f"{where}, column `{name}`")
            status = split(sides[name][-1]["content"], style).status
            if status != "ok":
                raise UserError(
                    f"{where}, column `{name}`: no output of style {style} ({status}); build the pairs anew"
                )
        longest = [_measured({"prompt": chat, "completion": side}, tokenizer, where) for side in sides.values()]
        return {"prompt": chat, **sides, "num_tokens": max(one["num_tokens"] for one in longest)}

    made = rows.map(render, with_indices=True, remove_columns=rows.column_names, desc="rendering")
    return _within(made, args.max_length)


def _measured(row: dict[str, Any], tokenizer: Any, where: str) -> dict[str, Any]:
    """A row with its length in the policy's template, which has to leave the output as it is."""
    text = str(tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False))
    prompt = chat_prompt(tokenizer, row["prompt"])
    said, begun = row["completion"][-1]["content"].strip(), prompt.rstrip()
    if said.startswith(OPEN_TAG):
        # A template that opens the thought itself has written a part of the output.
        begun = begun.removesuffix(OPEN_TAG).rstrip()
    if not text.startswith(begun) or not text[len(begun) :].lstrip().startswith(said):
        raise UserError(
            f"{where}: the chat template changes what the model is to learn (many take thoughts out of an assistant's "
            "turn, or write an empty one into it): give one that leaves it as it is, by `chat_template_path:` or in "
            "the tokenizer's folder"
        )
    return {**row, "num_tokens": len(tokenizer.encode(text, add_special_tokens=False))}


def _within(rows: Any, limit: int | None) -> Any:
    """The rows that fit, without their length; how many were left out is said aloud."""
    lengths = rows["num_tokens"]
    kept = [i for i, length in enumerate(lengths) if limit is None or length <= limit]
    if not kept:
        raise UserError(f"all {len(lengths)} rows are longer than max_length {limit}; the shortest has {min(lengths)}")
    if len(kept) < len(lengths):
        print(f"[rl_think] left out {len(lengths) - len(kept)} of {len(lengths)} rows above {limit} tokens", flush=True)
    return rows.select(kept).remove_columns("num_tokens")
