"""Build the warm-start set of RLMT: a teacher plans and answers, and only replies of the right form are kept.

    rl-think data rlmt-sft --input tulu.parquet --output data/sft --num-prompts 6000 --exclude data/rlmt \\
        --endpoint https://host --model teacher --api-key-env TEACHER_KEY

Kept is what is finished, has exactly one thought and one answer in the teacher's tags, no tag inside of either, and
both in the wanted language (the paper's rules). Everything else is refused and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import Any

from rl_think_ext import __version__
from rl_think_ext.data.asking import Asking, Question, Texts
from rl_think_ext.data.card import Card, keep_apart, versions, whole_folder
from rl_think_ext.data.cells import source_name, storable
from rl_think_ext.data.journal import Journal, key_of, open_journal
from rl_think_ext.data.language import CONFIDENCE, LanguageFilter
from rl_think_ext.data.lengths import Lengths, load_lengths
from rl_think_ext.data.prompts import Prompt, PromptFilter
from rl_think_ext.data.questions import PORTION, AskConfig, ChatAsker, draw_prompts, not_drawn, settings_of
from rl_think_ext.data.sources import Tally
from rl_think_ext.data.tables import SFT, chat, write_rows
from rl_think_ext.errors import UserError
from rl_think_ext.formats import TEACHER_INSTRUCTION, read_instruction
from rl_think_ext.records import Parts
from rl_think_ext.template import find_tag, join, split

_SHORT = 40  # characters


@dataclass(frozen=True, kw_only=True)
class RLMTSFTDataConfig(AskConfig):
    """Ask a teacher for a plan and an answer to every prompt, as the warm start of RLMT.

    Args:
        endpoint: Address of a server that speaks OpenAI's chat API, for example http://localhost:8000.
        temperature: Of the teacher.
        language: Prompts, plans and answers have to be in this language (ISO 639); None takes all.
        language_confidence: Least probability of that language.
        max_sequence_tokens: Longer rows (prompt, plan and answer) are refused; needs `tokenizer`.
        price_per_million_in: Price of a million tokens that the teacher reads; the card says what the set cost.
        price_per_million_out: Price of a million tokens that it writes.
    """

    endpoint: str
    temperature: float = 1.0
    language: str | None = "en"
    language_confidence: float = CONFIDENCE
    max_sequence_tokens: int = 20000
    price_per_million_in: float | None = None
    price_per_million_out: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style not in ("think", "response"):
            raise UserError(f"a warm start has a thought: `style` is think or response, got {self.style}")
        if self.language not in (None, "en") and not self.instruction_file:
            raise UserError(
                f"the teacher is asked for English: for `language` {self.language} give an instruction_file"
            )
        if not 0.0 <= self.temperature < inf or self.max_sequence_tokens < 1:
            raise UserError("`temperature` is a number from 0 on, and `max_sequence_tokens` at least 1")
        if not all(0.0 <= (price or 0.0) < inf for price in (self.price_per_million_in, self.price_per_million_out)):
            raise UserError("`price_per_million_in` and `price_per_million_out` are numbers from 0 on")


def build(config: RLMTSFTDataConfig) -> Card:
    """Write train.parquet, card.json and README.md into `config.output`, whole or not at all.

    Replies are kept in OUTPUT.journal, which stays: another build with other rules asks for nothing again.

    Raises:
        UserError: input, server, tokenizer or output that cannot be used, too many failures, or no reply is kept.
    """
    for given in (config.input, *config.exclude):
        keep_apart(given, config.output)
    made = _Builder(config)
    with open_journal(config.output) as journal, whole_folder(config.output, overwrite=config.overwrite) as folder:
        rows = made.rows(journal)
        num_rows, digest = write_rows(folder, {"train": rows}, SFT)
        card = made.card(num_rows, digest)
        if not rows:
            raise UserError(
                f"no reply of {config.model} was kept ({_listed(made.refused)}): look at {config.output}.journal"
            )
        card.write(folder)
    return card


class _Builder:
    """The state of one build."""

    def __init__(self, config: RLMTSFTDataConfig) -> None:
        self.config = config
        self.instruction = read_instruction(config.instruction_file) or TEACHER_INSTRUCTION
        self.language = LanguageFilter(config.language, config.language_confidence) if config.language else None
        self.lengths: Lengths | None = load_lengths(config.tokenizer, config.style) if config.tokenizer else None
        self.tally, self.filter = Tally(), PromptFilter(self.language, lengths=self.lengths)
        self.refused: Counter[str] = Counter()
        self.counts: dict[str, float] = {}

    def rows(self, journal: Journal) -> list[dict[str, Any]]:
        """Ask for everything that the journal does not hold; the rows that are kept, in the order of the prompts."""
        from tqdm import tqdm

        asker = ChatAsker(self.config, self.config.endpoint, self.config.temperature)
        asking = Asking(asker, journal, PORTION * self.config.max_concurrency, self.config.max_failed_share)
        prompts = draw_prompts(self.config, self.filter, self.tally)
        questions, rows = [self._question(prompt) for prompt in prompts], []
        with tqdm(total=len(questions), desc="asking", unit=" prompts", disable=None) as bar:
            for number, (question, reply) in enumerate(asking(questions, bar), start=1):
                row, reason = self._row(question.prompt, reply)
                if row:
                    rows.append(row)
                else:
                    self.refused[reason] += 1
                bar.set_postfix(kept=f"{len(rows) / number:.0%}", refresh=False)
        self.refused.update({f"no reply, {reason}": n for reason, n in asking.failures.items()})
        self.counts = self._counts(len(prompts), len(rows), asking)
        return rows

    def _question(self, prompt: Prompt) -> Question:
        """The chat with the teacher's instruction as, or before, its system message."""
        own, rest = (
            (prompt.messages[:1], prompt.messages[1:])
            if prompt.messages[0]["role"] == "system"
            else ([], prompt.messages)
        )
        words = "\n\n".join([self.instruction.strip(), *(message["content"] for message in own)])
        messages = [{"role": "system", "content": words}, *rest]
        config = self.config
        sampling = [config.model, config.temperature, config.top_p, config.max_tokens]
        return Question(prompt, messages, key_of(kind="teacher", sampling=sampling, messages=messages))

    def _row(self, prompt: Prompt, reply: Texts) -> tuple[dict[str, Any] | None, str]:
        """The row of a reply, or the reason why it is refused."""
        parts, reason = judge(reply.texts[0], reply.finished[0], self.language)
        if reason or parts.thought is None or parts.answer is None:
            return None, reason
        num_tokens = None
        if self.lengths is not None:
            if self.lengths.holds_special([{"content": parts.thought}, {"content": parts.answer}]):
                return None, "special token"
            text = self.lengths.render(prompt.messages)
            if text is None:
                return None, "the chat template refuses the prompt"
            # One more: the end of the text that the trainer puts behind it.
            num_tokens = self.lengths.count([text + join(parts.thought, parts.answer, self.config.style)])[0] + 1
            if num_tokens > self.config.max_sequence_tokens:
                return None, "longer than max_sequence_tokens"
        texts = {"thought": parts.thought, "answer": parts.answer, "source": prompt.source, "num_tokens": num_tokens}
        return {"id": prompt.id, "prompt": chat(prompt.messages), **texts}, ""

    def _counts(self, num_prompts: int, num_kept: int, asking: Asking) -> dict[str, float]:
        counts: dict[str, float] = {
            "rows read": self.tally.rows,
            **not_drawn(self.tally, self.filter, num_prompts),
            "prompts asked about": num_prompts,
            "requests of this build": asking.num_asked,
            "share of replies kept": round(num_kept / max(1, num_prompts - asking.failures.total()), 4),
            "tokens read by the teacher": asking.prompt_tokens,
            "tokens written by the teacher": asking.completion_tokens,
        }
        prices = (self.config.price_per_million_in, self.config.price_per_million_out)
        # A server that does not say how much it read and wrote did not do it for nothing.
        if asking.prompt_tokens and any(price is not None for price in prices):
            cost = asking.prompt_tokens * (prices[0] or 0.0) + asking.completion_tokens * (prices[1] or 0.0)
            counts["cost"] = round(cost / 1e6, 4)
        return counts

    def card(self, num_rows: dict[str, int], digest: str) -> Card:
        """What became of the prompts, and of the replies."""
        left_out = self.tally.skipped + self.filter.left_out
        packages = ["pyarrow", *(["transformers"] if self.lengths else []), *(["py3langid"] if self.language else [])]
        words = hashlib.sha256(self.instruction.encode()).hexdigest()
        return Card(
            method="rlmt-sft",
            source=source_name(self.config.input),
            seed=self.config.seed,
            num_documents=sum(num_rows.values()),
            num_rows=num_rows,
            content_hash=digest,
            skipped_documents={reason: n for reason, n in sorted(left_out.items()) if n},
            skipped_positions={reason: n for reason, n in sorted(self.refused.items()) if n},
            settings={
                **settings_of(self.config, bool(self.lengths), "max_sequence_tokens"),
                "instruction_sha256": words,
            },
            tokenizer=self.lengths.facts() if self.lengths else None,
            versions={"rl_think_ext": __version__, **versions(*packages)},
            counts=self.counts,
        )


def judge(text: str, finished: bool, language: LanguageFilter | None = None) -> tuple[Parts, str]:
    """A teacher's reply taken apart, and the reason why it is refused or nothing.

    >>> judge("<think>Add them.</think><response>4</response>", True)
    (Parts(thought='Add them.', answer='4', status='ok'), '')
    >>> judge("<think>Add them.</think>4", True)[1]
    'no_open'
    """
    if not storable(text):
        return Parts(None, None, "no_open"), "lone surrogate"
    parts = split(text, "response", finished=finished)
    if parts.status != "ok" or parts.thought is None or parts.answer is None:
        return parts, str(parts.status)
    if not finished:
        return parts, "truncated"
    if find_tag(parts.thought) or find_tag(parts.answer):
        return parts, "extra_tags"
    # A short answer ("4") tells no language: the plan alone is judged.
    short = len(parts.answer) < _SHORT
    if language and not (language(parts.thought) and (short or language(parts.answer))):
        return parts, "another language"
    return parts, ""


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in counts.most_common())
