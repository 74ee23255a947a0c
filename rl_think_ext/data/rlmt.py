"""Build the prompts of RLMT: chats out of any source in, one row for every chat that the policy is asked to answer.

    rl-think data rlmt --input wildchat.parquet --output data/rlmt --tokenizer Qwen/Qwen2.5-7B-Instruct

What cannot be used is left out and counted by reason. A prompt that is too long for the policy is left out for the
reward model as well: cut for the one and whole for the other, it would be another question.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rl_think_ext import __version__
from rl_think_ext.data.card import Card, keep_apart, versions, whole_folder
from rl_think_ext.data.cells import source_name
from rl_think_ext.data.language import CONFIDENCE, LanguageFilter
from rl_think_ext.data.lengths import NO_RENDERING, TOO_LONG, Lengths, load_lengths
from rl_think_ext.data.prompts import Prompt, PromptFilter, columns_of, read_prompts
from rl_think_ext.data.sources import Tally
from rl_think_ext.data.tables import PROMPTS, RENDERED, chat, on_test_side, write_rows
from rl_think_ext.errors import UserError
from rl_think_ext.formats import ZERO_INSTRUCTIONS, read_instruction, render_zero
from rl_think_ext.template import Style

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class RLMTDataConfig:
    """Collect prompts for RLMT, into a folder that datasets.load_dataset and both trainers read.

    Args:
        input: A .parquet, .jsonl or .txt file, a folder of these, or a `datasets` name.
        output: The folder that is made. It appears only when everything is in it.
        column: The column of the prompts: texts, or lists of messages; answers at the end of a chat are taken off.
            Without it the first of messages, prompt and text that is there.
        id_column: The column that holds a prompt's id; without it file and row number are the id.
        split: Which split to read of a `datasets` name, or of a folder that rl-think data built.
        validation: Prompts for test.parquet, in any form that `input` may have; they are taken out of train.parquet.
        test_share: Without `validation`: the share of the prompts that goes to test.parquet, by a hash of their text.
        tokenizer: The policy's, a folder or hub name. Without it no length is counted and none is too long.
        style: What the policy will write. think, none: its own chat template asks; response, response-only: a raw
            base model in a frame of words. Lengths are counted with that.
        max_prompt_tokens: Longer prompts are left out, template included. The paper's is 1024 (896 for response).
        instruction_file: A text in place of the words that ask a raw base model.
        render: Write `prompt` as the text that a raw base model reads, and the chat as `messages` beside it.
        language: Keep prompts of one language alone, as an ISO 639 code (en). The paper's prompts are used unfiltered.
        language_confidence: Least probability of that language. Short prompts and code have little.
        max_skipped_share: Stop when a larger share of the rows of the input cannot be used at all.
        overwrite: Replace a dataset that an earlier build left in `output`.
    """

    input: str
    output: str
    column: str | None = None
    id_column: str = "id"
    split: str = "train"
    validation: str | None = None
    test_share: float = 0.0
    tokenizer: str | None = None
    style: Style = "think"
    max_prompt_tokens: int = 1024
    instruction_file: str | None = None
    render: bool = False
    language: str | None = None
    language_confidence: float = CONFIDENCE
    max_skipped_share: float = 0.2
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.max_prompt_tokens < 1:
            raise UserError(f"`max_prompt_tokens` is at least 1, got {self.max_prompt_tokens}")
        if not 0.0 <= self.test_share < 1.0 or not 0.0 <= self.max_skipped_share <= 1.0:
            raise UserError("`test_share` is from 0 to below 1, and `max_skipped_share` from 0 to 1")
        if self.validation and self.test_share:
            raise UserError("`validation` names the prompts of the test split, `test_share` draws them: give one")
        if self.style not in ZERO_INSTRUCTIONS and (self.render or self.instruction_file):
            name = "render" if self.render else "instruction_file"
            raise UserError(f"`{name}` is for a raw base model: it needs style response or response-only")


def build(config: RLMTDataConfig) -> Card:
    """Write train.parquet (and test.parquet), card.json and README.md into `config.output`, whole or not at all.

    The same input gives the same rows, in the same order, and the same `content_hash`.

    Raises:
        UserError: input, tokenizer or output that cannot be used, or not a single prompt.
    """
    for given in filter(None, (config.input, config.validation)):
        keep_apart(given, config.output)
    made = _Builder(config)
    with whole_folder(config.output, overwrite=config.overwrite) as folder:
        num_rows, digest = write_rows(folder, made.splits(), RENDERED if config.render else PROMPTS)
        card = made.card(num_rows, digest)
        if not num_rows["train"]:
            raise UserError(_no_rows(card, made.lengths))
        card.write(folder)
    return card


class _Builder:
    """The state of one build: what is counted, and what renders and measures."""

    def __init__(self, config: RLMTDataConfig) -> None:
        self.config = config
        self.tally = Tally()
        self.instruction = read_instruction(config.instruction_file)
        language = LanguageFilter(config.language, config.language_confidence) if config.language else None
        self.lengths: Lengths | None = None
        if config.tokenizer:
            self.lengths = load_lengths(config.tokenizer, config.style, self.instruction)
        self.filter = PromptFilter(language, lengths=self.lengths)

    def splits(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each split. The validation side is read first, so that the training side can leave it out."""
        config = self.config
        if config.validation:
            test = list(self._prompts(config.validation))
            self.filter.elsewhere = {prompt.key: "also in the validation prompts" for prompt, _ in test}
            self.filter.forget()
            train = list(self._prompts(config.input))
        else:
            found = list(self._prompts(config.input))
            test = [(p, n) for p, n in found if on_test_side(p.key, config.test_share)]
            train = [(p, n) for p, n in found if not on_test_side(p.key, config.test_share)]
        splits = {"train": [self._row(*pair) for pair in train]}
        if config.validation or config.test_share:
            splits["test"] = [self._row(*pair) for pair in test]
        return splits

    def _prompts(self, source: str) -> Iterator[tuple[Prompt, int | None]]:
        """The prompts of a source that are used, each with its number of tokens."""
        from tqdm import tqdm

        columns = columns_of(self.config.column, self.config.id_column, self.config.split)
        tally = Tally()
        rows = read_prompts(source, columns, max_skipped_share=self.config.max_skipped_share, tally=tally)
        batch: list[Prompt] = []
        for prompt in tqdm(rows, desc="reading", unit=" prompts", disable=None):
            if self.filter(prompt):
                batch.append(prompt)
            if len(batch) == _BATCH:
                yield from self._measured(batch)
                batch = []
        yield from self._measured(batch)
        self.tally.rows += tally.rows
        self.tally.skipped.update(tally.skipped)

    def _measured(self, prompts: list[Prompt]) -> Iterator[tuple[Prompt, int | None]]:
        if self.lengths is None:
            yield from ((prompt, None) for prompt in prompts)
            return
        texts = [self.lengths.render(prompt.messages) for prompt in prompts]
        counts = iter(self.lengths.count([text for text in texts if text is not None]))
        for prompt, text in zip(prompts, texts, strict=True):
            num = next(counts) if text is not None else None
            if num is None:
                self.filter.left_out[NO_RENDERING] += 1
            elif num > self.config.max_prompt_tokens:
                self.filter.left_out[TOO_LONG] += 1
            else:
                yield prompt, num

    def _row(self, prompt: Prompt, num_tokens: int | None) -> dict[str, Any]:
        row: dict[str, Any] = {"id": prompt.id, "prompt": chat(prompt.messages)}
        if self.config.render:
            row["messages"] = row["prompt"]
            row["prompt"] = render_zero(prompt.messages, self.config.style, self.instruction)
        return {**row, "source": prompt.source, "num_tokens": num_tokens}

    def card(self, num_rows: dict[str, int], digest: str) -> Card:
        """What became of the input."""
        left_out = self.tally.skipped + self.filter.left_out
        counts = {"rows read": self.tally.rows}
        if self.filter.num_answers_off:
            counts["chats whose last answer was taken off"] = self.filter.num_answers_off
        packages = ["pyarrow", *(["transformers", "tokenizers"] if self.lengths else [])]
        packages += ["py3langid"] if self.config.language else []
        return Card(
            method="rlmt",
            source=source_name(self.config.input),
            seed=0,
            num_documents=sum(num_rows.values()),
            num_rows=num_rows,
            content_hash=digest,
            skipped_documents={reason: n for reason, n in sorted(left_out.items()) if n},
            settings=self._settings(),
            tokenizer=self.lengths.facts() if self.lengths else None,
            versions={"rl_think_ext": __version__, **versions(*packages)},
            counts=counts,
        )

    def _settings(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.config)
        del values["output"], values["overwrite"]
        for name in ("input", "validation", "tokenizer", "instruction_file"):
            values[name] = values[name] and source_name(values[name])
        if self.config.style in ZERO_INSTRUCTIONS:
            words = self.instruction or ZERO_INSTRUCTIONS[self.config.style]
            values["instruction_sha256"] = hashlib.sha256(words.encode()).hexdigest()
        if self.lengths is None:
            values["max_prompt_tokens"] = "no tokenizer was given: no prompt was measured"
        return values


def _no_rows(card: Card, lengths: Lengths | None) -> str:
    if sum(card.num_rows.values()):
        return f"{card.source} gave no prompt for training: all are on the test side"
    listed = ", ".join(f"{reason} {count}" for reason, count in card.skipped_documents.items())
    refused = f"; the first that the template refused: {lengths.refusals[0]}" if lengths and lengths.refusals else ""
    return f"{card.source} gave no prompt ({listed}){refused}"
