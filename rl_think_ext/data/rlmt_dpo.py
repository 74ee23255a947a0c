"""Build preference pairs for RLMT: several outputs of a policy, the best against the worst by a reward model.

    rl-think data rlmt-dpo --input data/rlmt --output data/pairs --model out/sft --reward-model skywork

The reward model judges the answers alone; what is chosen and rejected are whole outputs, thoughts included. A prompt
whose outputs have not the form often enough, or are all worth the same, gives no pair and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any, Literal, NamedTuple

from rl_think_ext import __version__
from rl_think_ext.data.answers import AnswerScorer, reward_config
from rl_think_ext.data.asking import Asker, Asking, Question, Texts
from rl_think_ext.data.card import Card, keep_apart, versions, whole_folder
from rl_think_ext.data.cells import source_name, storable
from rl_think_ext.data.journal import Journal, journal_path, key_of, open_journal
from rl_think_ext.data.lengths import NO_RENDERING, Lengths, load_lengths
from rl_think_ext.data.prompts import PromptFilter
from rl_think_ext.data.questions import PORTION, AskConfig, ChatAsker, draw_prompts, not_drawn, settings_of
from rl_think_ext.data.sampler import LocalAsker
from rl_think_ext.data.sources import Tally
from rl_think_ext.data.tables import PAIRS, chat, write_rows
from rl_think_ext.errors import UserError
from rl_think_ext.formats import ZERO_INSTRUCTIONS, read_instruction
from rl_think_ext.records import Parts
from rl_think_ext.template import CLOSE_RESPONSE, split

_PROMPTS_PER_CALL = 32  # of the reward model


@dataclass(frozen=True, kw_only=True)
class RLMTDPODataConfig(AskConfig):
    """Sample outputs of a policy and pair the best with the worst, for DPO.

    Args:
        model: The policy: with `endpoint` its name on the server, otherwise a folder or hub name to sample from in
            this process.
        endpoint: Address of a server that speaks OpenAI's chat API and serves the policy. It renders the chats, so a
            raw base model needs the frame of its style as the server's chat template.
        num_samples: Outputs for each prompt.
        temperature: Of the policy.
        max_batch_tokens: Tokens of one batch of a policy in this process, room for the outputs included.
        min_parsed: Prompts with fewer outputs of the right form give no pair.
        min_margin: The best score has to exceed the worst by more than this.
        max_pair_tokens: Pairs with a longer side (prompt and output) are left out; needs `tokenizer` or a policy in
            this process.
        reward_model: Folder or hub name. With a server its tokenizer and configuration are read from here.
        reward_server: Address of a vLLM server that classifies, for example http://localhost:8001.
        reward_server_model: The model's name there, when it is not `reward_model`.
        reward_backend: local runs the reward model here whatever its size; auto only up to 2 billion weights.
        reward_api_key_env: The environment variable that holds that server's key.
        reward_max_length: Tokens that the reward model reads at most; without it its own limit.
    """

    endpoint: str | None = None
    num_samples: int = 8
    temperature: float = 0.7
    max_batch_tokens: int = 65536
    min_parsed: int = 4
    min_margin: float = 0.0
    max_pair_tokens: int = 4096
    reward_model: str
    reward_server: str | None = None
    reward_server_model: str | None = None
    reward_backend: Literal["auto", "local", "server"] = "auto"
    reward_api_key_env: str | None = None
    reward_max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.min_parsed <= self.num_samples:
            raise UserError(f"`min_parsed` is from 2 to num_samples {self.num_samples}, got {self.min_parsed}")
        if (
            not 0.0 < self.temperature < inf
            or not self.min_margin >= 0.0
            or min(self.max_pair_tokens, self.max_batch_tokens) < 1
        ):
            raise UserError("`temperature` is above 0, `min_margin` at least 0, `max_pair_tokens` and such at least 1")
        if not self.endpoint and self.top_p != 1.0:
            raise UserError("`top_p` is for a server: in this process outputs come from the whole distribution")
        reward_config(self)


def build(config: RLMTDPODataConfig) -> Card:
    """Write train.parquet, card.json and README.md into `config.output`, whole or not at all.

    Outputs and scores are kept in OUTPUT.journal until the folder is there.

    Raises:
        UserError: input, policy, reward model or output that cannot be used, too many failures, or no pair.
    """
    for given in (config.input, *config.exclude):
        keep_apart(given, config.output)
    made = _Builder(config)
    with open_journal(config.output) as journal:
        with whole_folder(config.output, overwrite=config.overwrite) as folder:
            rows = made.rows(journal)
            num_rows, digest = write_rows(folder, {"train": rows}, PAIRS)
            card = made.card(num_rows, digest)
            if not rows:
                reasons = ", ".join(f"{reason} {n}" for reason, n in made.left_out.most_common())
                outputs = ", ".join(f"{status} {n}" for status, n in made.statuses.most_common())
                raise UserError(
                    f"{card.source} gave no pair ({reasons}); outputs in style {config.style}: {outputs or 'none'}"
                )
            card.write(folder)
        # A policy that was trained on bears the same name: its outputs are not to be mistaken for these.
        journal_path(config.output).unlink(missing_ok=True)
    return card


class Candidate(NamedTuple):
    """An output that has the form: the whole text, and its parts."""

    text: str
    parts: Parts


class _Builder:
    """The state of one build."""

    def __init__(self, config: RLMTDPODataConfig) -> None:
        self.config = config
        self.tally = Tally()
        self.left_out: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.counts: dict[str, float] = {}
        self.instruction = read_instruction(config.instruction_file)
        tokenizer = config.tokenizer or (None if config.endpoint else config.model)
        self.lengths: Lengths | None = load_lengths(tokenizer, config.style, self.instruction) if tokenizer else None
        self.filter = PromptFilter(lengths=self.lengths)
        self.stop = CLOSE_RESPONSE if config.style in ZERO_INSTRUCTIONS else None
        self.scorer = AnswerScorer(reward_config(config), config.max_failed_share)

    def rows(self, journal: Journal) -> list[dict[str, Any]]:
        """Sample and score what the journal does not hold; the pairs, in the order of the prompts."""
        from tqdm import tqdm

        prompts = draw_prompts(self.config, self.filter, self.tally)
        asker, policy = self._asker()
        asking = Asking(asker, journal, PORTION * self.config.max_concurrency, self.config.max_failed_share)
        config = self.config
        sampling = [policy, config.temperature, config.top_p, config.max_tokens, config.num_samples, config.seed]
        how = {"kind": "policy", "sampling": sampling, "style": config.style, "instruction": self.instruction}
        questions = [Question(p, p.messages, key_of(**how, messages=p.messages)) for p in prompts]
        rows: list[dict[str, Any]] = []
        with tqdm(total=len(questions), desc="sampling", unit=" prompts", disable=None) as bar:
            for portion in _portions(asking(questions, bar), _PROMPTS_PER_CALL):
                rows += self._pairs(portion, journal)
                bar.set_postfix(pairs=len(rows), refresh=False)
        self.left_out.update({f"no outputs, {reason}": n for reason, n in asking.failures.items()})
        self.counts = {
            "rows read": self.tally.rows,
            **not_drawn(self.tally, self.filter, len(prompts)),
            "prompts sampled": len(prompts),
            **{f"outputs {status}": n for status, n in sorted(self.statuses.items())},
            **self.scorer.counts(),
        }
        return rows

    def _asker(self) -> tuple[Asker, str]:
        """Who samples, and what tells this policy from another one in the journal."""
        if self.config.endpoint:
            asker = ChatAsker(self.config, self.config.endpoint, self.config.temperature, self.config.num_samples)
            return asker, self.config.model
        assert self.lengths is not None
        local = LocalAsker(self.config, self.lengths, self.config.temperature, self.config.num_samples)
        return local, local.fingerprint

    def _pairs(self, portion: Sequence[tuple[Question, Texts]], journal: Journal) -> Iterator[dict[str, Any]]:
        found = [(question, self._candidates(reply)) for question, reply in portion]
        found = [(q, c) for q, c in found if self._counted(len(c) >= self.config.min_parsed, "too few outputs parsed")]
        scores = iter(self.scorer([(q.prompt.messages, c.parts) for q, many in found for c in many], journal))
        for question, many in found:
            row = self._pair(question, many, list(islice(scores, len(many))))
            if row is not None:
                yield row

    def _candidates(self, reply: Texts) -> list[Candidate]:
        """The outputs that have the form."""
        found = []
        for given, ended in zip(reply.texts, reply.finished, strict=True):
            text, finished = until_stop(given, ended, self.stop)
            parts = split(text, self.config.style, finished=finished)
            special = self.lengths is not None and self.lengths.holds_special([{"content": text}])
            status = "special token" if special else parts.status if storable(text) else "lone surrogate"
            self.statuses[status] += 1
            if status == "ok":
                found.append(Candidate(text, parts))
        return found

    def _pair(
        self, question: Question, candidates: Sequence[Candidate], scores: Sequence[float | None]
    ) -> dict[str, Any] | None:
        num_scored = sum(score is not None for score in scores)
        if not self._counted(num_scored >= self.config.min_parsed, "too few answers scored"):
            return None
        pair = best_and_worst(scores, self.config.min_margin)
        if not self._counted(pair is not None, "no difference above min_margin") or pair is None:
            return None
        best, worst = pair
        prompt, texts = question.prompt, [candidates[i].text for i in pair]
        num_tokens = None
        if self.lengths is not None:
            rendered = self.lengths.render(prompt.messages)
            if not self._counted(rendered is not None, NO_RENDERING) or rendered is None:
                return None
            # One more: the end of the text that the trainer puts behind it.
            num_tokens = max(self.lengths.count([rendered + text for text in texts])) + 1
            if not self._counted(num_tokens <= self.config.max_pair_tokens, "longer than max_pair_tokens"):
                return None
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
        return {
            "id": prompt.id,
            "prompt": chat(prompt.messages),
            "chosen": chosen,
            "rejected": rejected,
            "chosen_score": scores[best],
            "rejected_score": scores[worst],
            "num_parsed": len(candidates),
            "source": prompt.source,
            "num_tokens": num_tokens,
        }

    def _counted(self, good: bool, reason: str) -> bool:
        if not good:
            self.left_out[reason] += 1
        return good

    def card(self, num_rows: dict[str, int], digest: str) -> Card:
        """What became of the prompts."""
        left_out = self.tally.skipped + self.filter.left_out
        return Card(
            method="rlmt-dpo",
            source=source_name(self.config.input),
            seed=self.config.seed,
            num_documents=sum(num_rows.values()),
            num_rows=num_rows,
            content_hash=digest,
            skipped_documents={reason: n for reason, n in sorted(left_out.items()) if n},
            skipped_positions={reason: n for reason, n in sorted(self.left_out.items()) if n},
            settings=settings_of(self.config, bool(self.lengths), "max_pair_tokens"),
            tokenizer=self.lengths.facts() if self.lengths else None,
            versions={"rl_think_ext": __version__, **versions("pyarrow", "transformers", "torch")},
            counts=self.counts,
        )


def until_stop(text: str, finished: bool, stop: str | None) -> tuple[str, bool]:
    """An output up to where training stops as well: what a server wrote behind it is no part of it.

    >>> until_stop("<response>4</response> User:", False, "</response>")
    ('<response>4</response>', True)
    """
    if not stop or stop not in text:
        return text, finished
    return text[: text.index(stop) + len(stop)], True


def best_and_worst(scores: Sequence[float | None], min_margin: float = 0.0) -> tuple[int, int] | None:
    """The places of the highest and the lowest score, the first of equals; None where they differ by no more.

    >>> best_and_worst([0.1, None, 0.7, 0.7, -1.0])
    (2, 4)
    >>> best_and_worst([0.5, 0.5]) is None
    True
    """
    known = [(score, -i) for i, score in enumerate(scores) if score is not None]
    if not known:
        return None
    best, worst = max(known), min((score, -i) for score, i in known)
    return (-best[1], worst[1]) if best[0] - worst[0] > min_margin else None


def _portions(found: Iterable[tuple[Question, Texts]], size: int) -> Iterator[list[tuple[Question, Texts]]]:
    rest = iter(found)
    while portion := list(islice(rest, size)):
        yield portion
