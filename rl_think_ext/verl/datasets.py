"""The datasets of RLP and RLMT for verl: what `rl-think data` builds, as verl's agent loops and trainers take it.

    data.custom_cls.path=pkg://rl_think_ext.verl data.custom_cls.name=RLPDataset data.train_files=data/rlp

Everything that can be known of the rows before the first step is checked when the dataset is built, in the driver: the
columns, their types, every token id, the longest rows. What is left is found when a row is read, and names it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl_think_ext.data.reader import Ids, Reader
from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.scoring.chat_prompt import prompt_ids
from rl_think_ext.template import TagIds
from rl_think_ext.verl import suspects
from rl_think_ext.verl.map_style import ThinkDataset
from rl_think_ext.verl.resolved import door_of


class RLPDataset(ThinkDataset):
    """Contexts and targets for RLP, as `rl-think data rlp` or `rl-think data verl` writes them.

    Args:
        data_files: What `data.train_files` may name; see data_files.py.
        tokenizer: The policy's.
        config: verl's `data` part; the settings of the run lie in its `rl_think.rlp`.
        processor: None: RLP is for text.
        max_samples: Rows that are used, drawn by `data.seed` where the data are shuffled; -1 takes all.

    Raises:
        UserError: naming file, row and column, for rows that cannot be used or have no room.
    """

    method = "rlp"
    loop = "rl_think_thought"
    shorter = "build the data with a smaller `--max-context-tokens` (rl-think data rlp)"

    @property
    def reader(self) -> Reader:
        """Turns rows into ids; built anew in every process."""
        if "_kept_reader" not in self.__dict__:
            self._kept_reader = Reader(self.tokenizer, self.settings, TagIds.of(self.tokenizer))
        return self._kept_reader

    def _read(self, row: dict[str, Any], where: str, own: str) -> dict[str, Any]:
        prompt, context, target = self._ids(row, where)
        given = row.get("target_ids")
        return {
            "raw_prompt": [{"role": "user", "content": row["prompt"]}],
            "reward_model": {"ground_truth": row.get("target") or ""},
            "think_row": {
                "id": own,
                "where": where,
                "prompt_ids": list(prompt),
                "context_ids": list(context),
                "target_ids": list(target),
                # Another setting may score more of them when the run is replayed.
                "all_target_ids": list(target if given is None else given),
                "context": row.get("context") or "",
                "target": row.get("target") or "",
            },
        }

    def _ids(self, row: dict[str, Any], where: str) -> tuple[Ids, Ids, Ids]:
        row["prompt"] = _plain_prompt(row.get("prompt"), where)
        context = self.reader.context(row, where)
        return self.reader.prompt(row, context, where), context, self.reader.target(row, where)

    def _length(self, row: dict[str, Any], where: str) -> int:
        return len(self._ids(row, where)[0])

    def _require(self) -> None:
        built_by = "rl-think data rlp"
        self.rows.require("prompt", "context", built_by=built_by)
        if not all("target_ids" in part.column_names for part in self.rows.parts):
            self.rows.require("target", built_by=built_by)

    def _suspicious(self, part: Any) -> Any:
        size, forbidden = len(self.tokenizer), suspects.strange_ids(self.tokenizer)
        scored = self.settings.num_target_tokens
        return (
            suspects.without_text(part, "prompt")
            | suspects.without_text(part, "context")
            | suspects.wrong_ids(part, "context_ids", size, forbidden)
            | suspects.wrong_ids(part, "target_ids", size, forbidden, scored)
        )

    def _column(self, part: Any) -> str:
        return "context_ids" if "context_ids" in part.column_names else "prompt"


class RLMTDataset(ThinkDataset):
    """Chats for RLMT, as `rl-think data rlmt` or `rl-think data verl` writes them.

    The column `prompt` holds the chat, or the text of a frame; then the chat is in `messages`. Args and Raises as
    RLPDataset.
    """

    method = "rlmt"
    loop = "rl_think_chat"
    shorter = "build the data with `--tokenizer` and a smaller `--max-prompt-tokens` (rl-think data rlmt)"

    def _read(self, row: dict[str, Any], where: str, own: str) -> dict[str, Any]:
        return {
            "raw_prompt": _chat(row, where),
            "reward_model": {"ground_truth": ""},
            "think_row": {"id": own, "where": where},
        }

    def _length(self, row: dict[str, Any], where: str) -> int:
        options = self.config.get("apply_chat_template_kwargs")
        prefill = door_of(self.config).prefill_think
        return len(prompt_ids(_chat(row, where), self.settings, self.tokenizer, where, options, prefill=prefill))

    def _require(self) -> None:
        self.rows.require("prompt", built_by="rl-think data rlmt")

    def _suspicious(self, part: Any) -> Any:
        return suspects.without_messages(part, self._column(part))

    def _column(self, part: Any) -> str:
        return "messages" if "messages" in part.column_names else "prompt"


def _plain_prompt(value: Any, where: str) -> str:
    """The text that a policy of RLP goes on from; in verl's own form it is a chat of one user message."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Mapping):
        role, content = value[0].get("role"), value[0].get("content")
        if role == "user" and isinstance(content, str):
            return content
    kind = "nothing" if value is None else "a chat" if isinstance(value, Sequence) else type(value).__name__
    raise UserError(f"{where}: column `prompt` holds {kind}; RLP predicts plain text, not chats")


def _chat(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """The raw chat of a row, which ends with a user's message (F32)."""
    column, value = "prompt", row.get("prompt")
    if isinstance(value, str):
        column, value = "messages", row.get("messages")
        if value is None:
            raise UserError(
                f"{where}: column `prompt` is text, and there is no column `messages` with the chat: build the data "
                "with `rl-think data rlmt`, which makes chats of texts"
            )
    chat = messages_of(value, f"{where}, column `{column}`")
    if chat[-1]["role"] != "user":
        raise UserError(
            f"{where}, column `{column}`: the chat ends with the {chat[-1]['role']}'s message, and a policy answers a "
            "user's: build the data with `rl-think data rlmt`, which takes answers off"
        )
    return chat
