"""Questions to a model in portions: every reply goes into the journal as it comes, and too many failures end it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rl_think_ext.data.journal import Journal
from rl_think_ext.data.prompts import Prompt
from rl_think_ext.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

_DOWN, _AT_LEAST = 0.5, 8  # the share of a portion, and the number, of failures that say that a server is down


class Question(NamedTuple):
    """A prompt, what is asked about it, and the key of the reply in the journal."""

    prompt: Prompt
    messages: list[dict[str, str]]
    key: str


class Texts(NamedTuple):
    """A reply: its texts, which of them ended by themselves, and what they cost in tokens."""

    texts: list[str]
    finished: list[bool]
    prompt_tokens: int
    completion_tokens: int


OnReply = Callable[[int, Texts | str], None]


class Asker(Protocol):
    """Asks a model; `on_reply(index, reply or the reason why there is none)` is called as they come."""

    def __call__(self, questions: Sequence[Question], on_reply: OnReply) -> None: ...


@dataclass
class Asking:
    """Replies to questions, from the journal where they are known.

    Args:
        ask: Asks the model.
        journal: Where replies are kept.
        portion: Questions that are asked together; after each portion the failures are looked at.
        max_failed_share: Of all questions that may fail. A portion that fails mostly ends it at once.
    """

    ask: Asker
    journal: Journal
    portion: int
    max_failed_share: float
    num_asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_failure: str = ""
    num_questions: int = 0

    def __call__(self, questions: Sequence[Question], bar: tqdm[Any]) -> Iterator[tuple[Question, Texts]]:
        """Every question that has a reply, with it, in their order; the bar moves as replies come.

        Called again it goes on counting: the share that may fail is that of all questions so far.

        Raises:
            UserError: more failures than allowed. What came is in the journal.
        """
        self.num_questions += len(questions)
        for start in range(0, len(questions), self.portion):
            portion = questions[start : start + self.portion]
            unknown = [question for question in portion if self._stored(question.key) is None]
            bar.update(len(portion) - len(unknown))
            if unknown:
                before = self.failures.total()
                self.ask(unknown, self._keep(unknown, bar))
                self._check(self.num_questions, len(portion), self.failures.total() - before)
            for question in portion:
                if reply := self._stored(question.key):
                    self.prompt_tokens += reply.prompt_tokens
                    self.completion_tokens += reply.completion_tokens
                    yield question, reply

    def _keep(self, questions: Sequence[Question], bar: tqdm[Any]) -> OnReply:
        def on_reply(index: int, reply: Texts | str) -> None:
            self.num_asked += 1
            bar.update()
            if isinstance(reply, str):
                # The kind alone is counted: addresses and numbers would make every failure one of its own.
                self.failures[reply.partition(":")[0]] += 1
                self.first_failure = self.first_failure or reply
            else:
                self.journal.put(questions[index].key, reply._asdict())

        return on_reply

    def _stored(self, key: str) -> Texts | None:
        """A reply out of the journal; None where there is none, or none that can be read: it is asked for again."""
        if key not in self.journal:
            return None
        try:
            reply = Texts(**self.journal.get(key))
            return reply if reply.texts and len(reply.texts) == len(reply.finished) else None
        except TypeError:
            return None

    def _check(self, num_questions: int, num_portion: int, num_now: int) -> None:
        # Of all questions, known replies included: a build that goes on asks again for what failed, and for that alone.
        num = self.failures.total()
        down = num_now >= _AT_LEAST and num_now > max(_DOWN, self.max_failed_share) * num_portion
        if down or num > self.max_failed_share * num_questions:
            raise UserError(
                f"{num} of {num_questions} prompts got no reply, more than max_failed_share {self.max_failed_share:g}"
                f"{' (of those asked last)' if num <= self.max_failed_share * num_questions else ''}; the first: "
                f"{self.first_failure}. Replies that came are kept: the same command goes on where this ended"
            )
