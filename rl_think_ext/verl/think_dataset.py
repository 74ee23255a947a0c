"""What the datasets of all methods share: which rows are used, the checks before the first step, verl's own fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from rl_think_ext.errors import UserError
from rl_think_ext.verl import odd_rows
from rl_think_ext.verl.data_files import Rows, files_of
from rl_think_ext.verl.resolved import NODE, settings_of

_LOOKED_AT = 64


class ThinkDataset(Dataset[dict[str, Any]]):
    """A map-style dataset: rows by number, so that a resumed dataloader goes on where it was."""

    method: ClassVar[str]
    loop: ClassVar[str]
    built_by: ClassVar[str]
    shorter: ClassVar[str]  # how data with shorter prompts are built

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        if processor is not None:
            raise UserError(
                f"this model brings a processor for images or sound, and {self.method.upper()} is for text: name a "
                "text model in actor_rollout_ref.model.path"
            )
        _check_trainer(config, self.method)
        self.tokenizer, self.config = tokenizer, config
        self.settings = settings_of(config, self.method)
        self.rows = Rows(files_of(data_files, config, self.built_by))
        self.chosen = _chosen(len(self.rows), max_samples, config)
        self.longest = (0, "")
        self._check()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self.chosen[index])
        row = self.rows[number]
        return self._item(number, row, self.rows.where(number, row))

    def _item(self, number: int, row: dict[str, Any], where: str) -> dict[str, Any]:
        own = str(row["id"]) if row.get("id") is not None else f"row {number}"
        return {
            **self._read(row, where, own),
            "data_source": _source(row, where, self._source_column, self.method),
            "extra_info": {**_extra_info(row, where), "index": number, "id": own},
            "index": number,
            "agent_name": self.loop,
        }

    @property
    def _source_column(self) -> str:
        return self.config.get("reward_fn_key") or "data_source"

    def __getstate__(self) -> dict[str, Any]:
        # What remembers encoded texts cannot be sent to a dataloader's process, and is built anew there.
        return {name: value for name, value in self.__dict__.items() if name != "_kept_reader"}

    @classmethod
    async def process_vision_info(cls, *args: Any, **kwargs: Any) -> tuple[None, None]:
        """No images and no videos, for verl's agent loops, which ask."""
        return None, None

    def check_room(self, positions: int | None, response: int, extra: int = 0) -> None:
        """Refuse data whose longest prompt leaves no room for a response in the model.

        Args:
            positions: Positions of the model; None is unknown.
            response: `data.max_response_length`.
            extra: Tokens that are scored behind a response.

        Raises:
            UserError: naming the row.
        """
        prompt, where = self.longest
        if positions is not None and prompt + response + extra > positions:
            raise UserError(
                f"{where}: a prompt of {prompt} tokens, data.max_response_length {response} and {extra} more do not "
                f"fit into the model's {positions} positions: lower data.max_response_length, or {self.shorter}"
            )

    def check_length(self, length: int, where: str) -> None:
        """Refuse a prompt that an engine would cut, or whose response it would.

        Raises:
            UserError: naming the row.
        """
        limit = self.config.get("max_prompt_length", 512)
        if length > limit:
            raise UserError(
                f"{where}: a prompt of {length} tokens is longer than data.max_prompt_length {limit}: raise it, or "
                f"{self.shorter}"
            )

    def _read(self, row: dict[str, Any], where: str, own: str) -> dict[str, Any]:
        """What a row is for its method."""
        raise NotImplementedError

    def _check(self) -> None:
        """Refuse missing columns; read every row that may be wrong, some others, and those with the longest prompts.

        Raises:
            UserError: naming the row, also for one above `data.max_prompt_length`.
        """
        self._require()
        odd = np.concatenate([self._odd(part) | self._odd_fields(part) for part in self.rows.parts])[self.chosen]
        sizes = np.concatenate([odd_rows.sizes(part, self._column(part)) for part in self.rows.parts])[self.chosen]
        spread = np.linspace(0, len(self.chosen) - 1, _LOOKED_AT).astype(int)
        wanted = [np.flatnonzero(odd), np.argsort(sizes, kind="stable")[-_LOOKED_AT:], spread]
        for number in self.chosen[np.unique(np.concatenate(wanted))].tolist():
            row = self.rows[number]
            where = self.rows.where(number, row)
            self._item(number, row, where)
            length = self._length(row, where)
            self.check_length(length, where)
            self.longest = max(self.longest, (length, where))

    def _require(self) -> None:
        """Refuse files without the columns that the method needs."""
        raise NotImplementedError

    def _odd(self, part: Any) -> Any:
        """[rows] bool: what may be unusable for the method in a file; a row that is not flagged is usable."""
        raise NotImplementedError

    def _odd_fields(self, part: Any) -> Any:
        """[rows] bool: a value of another type in the columns that are verl's own."""
        names = odd_rows.other_than_names(part, "extra_info")
        return names | odd_rows.other_than_text(part, self._source_column)

    def _column(self, part: Any) -> str:
        """The column whose sizes tell which prompts are long."""
        raise NotImplementedError

    def _length(self, row: dict[str, Any], where: str) -> int:
        """The tokens of a row's prompt, once it is known that it can be read."""
        raise NotImplementedError


def _check_trainer(config: Any, method: str) -> None:
    """Refuse verl's other trainers, where verl itself names the dataset: they would start, and fail sample by sample.

    Raises:
        UserError: naming the key.
    """
    named = (config.get("custom_cls") or {}).get("name")
    trainer = (config.get(NODE) or {}).get("trainer")
    if named is not None and trainer != method:
        raise UserError(
            f"data.custom_cls.name: {named} is for the trainer of {method.upper()}: verl's own ones (sync, "
            "colocate_async, separate_async, the legacy one) count a sample without a score as a score of 0. Say "
            f"`trainer.v1.trainer_mode={method}` and `trainer.use_v1=true`, as `+rl_think={method}` does"
        )


def _chosen(total: int, max_samples: int, config: Any) -> Any:
    """The numbers of the rows that are used: all, or as many as verl's own dataset takes."""
    if not 0 < max_samples < total:
        return np.arange(total)
    if not config.get("shuffle", False):
        return np.arange(max_samples)
    # verl draws anew in every run without a seed; a resumed run would read other rows.
    return np.sort(np.random.default_rng(config.get("seed") or 0).choice(total, size=max_samples, replace=False))


def _source(row: Mapping[str, Any], where: str, column: str, method: str) -> str:
    """The name under which verl averages validation scores: the row's own, or the method's."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column `{column}` holds {type(value).__name__}; expected a text")
    return value or method


def _extra_info(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = row.get("extra_info")
    if value is not None and not isinstance(value, Mapping):
        raise UserError(
            f"{where}: column `extra_info` holds {type(value).__name__}; expected names with values, or nothing"
        )
    return dict(value or {})
