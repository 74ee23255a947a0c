"""The datasets of RLP and RLMT for verl: what `rl-think data` builds, as verl's agent loops and trainers take it.

    data.custom_cls.path=pkg://rl_think_ext.verl data.custom_cls.name=RLPDataset data.train_files=data/rlp

When the dataset is built, in the driver and before the first step, every row is looked at: columns, types, token ids,
chats, and whether a prompt was built around its context. What takes a tokenizer or a chat template is known of 64 rows
over the files and of the 64 longest; in another row (few characters, many tokens) it is found when that is read. Every
error names the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl_think_ext.data.reader import Ids, Reader
from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.scoring.chat_prompt import prompt_ids
from rl_think_ext.template import OPEN_TAG, TagIds, find_tag
from rl_think_ext.verl import odd_rows
from rl_think_ext.verl.resolved import door_of
from rl_think_ext.verl.think_dataset import ThinkDataset


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
    built_by = "rl-think data rlp"
    shorter = "build the data with a smaller `--max-context-tokens` (rl-think data rlp)"

    @property
    def reader(self) -> Reader:
        """Turns rows into ids; built anew in every process."""
        if "_kept_reader" not in self.__dict__:
            self._kept_reader = Reader(self.tokenizer, self.settings, TagIds.of(self.tokenizer))
        return self._kept_reader

    def _read(self, row: dict[str, Any], where: str, own: str) -> dict[str, Any]:
        prompt, context, target = self._ids(row, where)
        self.check_length(len(prompt), where)
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
        self.rows.require("prompt", "context", built_by=self.built_by)
        if not all("target_ids" in part.column_names for part in self.rows.parts):
            self.rows.require("target", built_by=self.built_by)

    def _odd(self, part: Any) -> Any:
        size, forbidden = len(self.tokenizer), odd_rows.strange_ids(self.tokenizer)
        scored = self.settings.num_target_tokens
        return (
            odd_rows.failing(part, ("prompt", "context"), self._is_unlike_its_context)
            | odd_rows.without_any(part, "target", "target_ids")
            | odd_rows.other_than_text(part, "target")
            | odd_rows.empty_lists(part, "context_ids")
            | odd_rows.wrong_ids(part, "context_ids", size, forbidden)
            | odd_rows.wrong_ids(part, "target_ids", size, forbidden, scored)
            | odd_rows.wrong_ids(part, "prompt_ids", size, ())
        )

    def _is_unlike_its_context(self, row: Mapping[str, Any]) -> bool:
        """Whether a prompt was not built around its context, in the way of asking that the settings say."""
        try:
            prompt = _plain_prompt(row["prompt"], "")
        except UserError:
            return True
        context, prefilled = row["context"], self.settings.elicit == "prefill"
        inside = isinstance(context, str) and context != "" and context in prompt
        return not inside or prompt.endswith(OPEN_TAG) != prefilled

    def _column(self, part: Any) -> str:
        return "context_ids" if "context_ids" in part.column_names else "prompt"


class RLMTDataset(ThinkDataset):
    """Chats for RLMT, as `rl-think data rlmt` or `rl-think data verl` writes them.

    The column `prompt` holds the chat, or the text of a frame; then the chat is in `messages`. Args and Raises as
    RLPDataset.
    """

    method = "rlmt"
    loop = "rl_think_chat"
    built_by = "rl-think data rlmt"
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
        self.rows.require("prompt", built_by=self.built_by)

    def _odd(self, part: Any) -> Any:
        return odd_rows.failing(part, ("prompt", "messages"), self._is_unusable)

    def _is_unusable(self, row: Mapping[str, Any]) -> bool:
        try:
            chat = _chat(row, "")
        except UserError:
            return True
        return self.settings.stop is not None and any(find_tag(message["content"]) for message in chat)

    def _column(self, part: Any) -> str:
        return "messages" if odd_rows.is_text(part, "prompt") and "messages" in part.column_names else "prompt"


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
