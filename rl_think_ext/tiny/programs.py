"""The corpus of the miniature task: little programs over the digits, whose answer needs one table look-up per step.

    quiz    a=5 b=a+4 c=b*3 d=c-6 d?<think>a=5 b=a+4=9 c=b*3=7 d=c-6=1</think>=1<eos>
    trace   a=5 b=a+4 c=b*3 d=c-6 :a=5 b=a+4=9 c=b*3=7 d=c-6=1<eos>
    log     a=5 b=a+4=9 c=b*3=7<eos>

A quiz in the pre-training text carries no thought, or one that is worked, wrong, an echo of the program, or chat.
RLP reads quizzes without thoughts and has to find out which kind of thought predicts the answer.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict

Part = Literal["train", "dev", "test"]
Kind = Literal["correct", "steps", "echo", "chat", "other"]

NAMES = "abcdefghij"
CHAT = (
    *"well hmm okay so let me see this is hard think maybe".split(),
    *"not sure now what about the sum or even odd try again".split(),
)
# Only 3, 7 and 9 are bijective modulo 10: other factors would make 0 and the even digits more frequent.
OPERATIONS = (*(f"+{n}" for n in range(1, 10)), *(f"-{n}" for n in range(1, 10)), "*3", "*7", "*9")
# With 6 % instead of 12 % worked steps only one of three pre-trained models could be taught by RLP.
MIX: Mapping[str, float] = {
    "log": 0.15, "trace": 0.23, "none": 0.12, "steps": 0.12, "wrong": 0.08, "echo": 0.08, "chat": 0.22,
}  # fmt: skip
MIN_STEPS, MAX_STEPS = 3, 5
KEY_STEPS = 3

_SALT = b"rl_think_ext.tiny.programs.1:"
_STEPS = re.compile(r"(?:a=\d)?(?: [b-j]=[a-i][-+*]\d=\d)+")
_WORD = re.compile(r"=\d|a(?==\d)| [b-j]=[a-i]|[-+*]\d| [b-j]\?")
_CHAT = re.compile(r"(?: [a-z]+)+")


class ProgramRow(TypedDict):
    """A quiz without a thought: a row of the RLP schema, with the worked steps as `gold`.

    `position` is the index of the target in the text, in tokens of the miniature task's tokenizer.
    """

    id: str
    prompt: str
    context: str
    target: str
    gold: str
    source: str
    position: int


@dataclass(frozen=True)
class Program:
    """A digit and a chain of operations modulo 10, each on the variable before it."""

    first: int
    operations: tuple[str, ...]

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The digit of every variable, the first one included."""
        values = [self.first]
        for operation in self.operations:
            operator, digit = operation[0], int(operation[1])
            last = values[-1]
            values.append((last + digit if operator == "+" else last - digit if operator == "-" else last * digit) % 10)
        return tuple(values)

    @property
    def lines(self) -> list[str]:
        """The assignments after the first, such as ` b=a+4`."""
        return [f" {NAMES[i + 1]}={NAMES[i]}{operation}" for i, operation in enumerate(self.operations)]

    @property
    def source(self) -> str:
        """The program as text."""
        return f"a={self.first}" + "".join(self.lines)

    @property
    def question(self) -> str:
        """What a quiz asks: the last variable."""
        return f" {NAMES[len(self.operations)]}?"

    @property
    def answer(self) -> str:
        """The value of the last variable, as the one token that follows the question."""
        return f"={self.values[-1]}"

    @property
    def gold(self) -> str:
        """The worked steps."""
        return self.steps(self.values)

    @property
    def part(self) -> Part:
        """Where the program belongs; decided by its first digit and first three operations.

        Whatever begins like a held-out program is held out too, so no training text works out a prefix of one that
        has three operations or more. Shorter programs are the arithmetic itself and always belong to training.
        """
        if len(self.operations) < KEY_STEPS:
            return "train"
        key = f"{self.first}{''.join(self.operations[:KEY_STEPS])}"
        bucket = zlib.crc32(_SALT + key.encode()) % 20
        return "dev" if bucket == 0 else "test" if bucket == 1 else "train"

    def steps(self, values: tuple[int, ...]) -> str:
        """The steps with these results, of which the first is ignored: it stands in the program."""
        worked = (f"{line}={value}" for line, value in zip(self.lines, values[1:], strict=True))
        return f"a={self.first}" + "".join(worked)


@dataclass(frozen=True)
class Document:
    """One text of the corpus, and the program that it is about."""

    kind: str
    program: Program
    text: str


def training_documents(seed: int, n: int) -> list[Document]:
    """The first `n` pre-training documents of this seed; a longer list begins with the shorter one."""
    rng = random.Random(f"documents:{seed}")
    kinds, weights = list(MIX), list(MIX.values())
    return [_document(rng, rng.choices(kinds, weights)[0]) for _ in range(n)]


def rl_rows(seed: int, n: int) -> list[ProgramRow]:
    """Quizzes without thoughts from the training part: what RLP learns from."""
    return list(_rows("train", seed, n))


def held_out_rows(part: Literal["dev", "test"], seed: int, n: int) -> list[ProgramRow]:
    """Quizzes that neither pre-training nor RL has seen; "test" is for the final measurement alone.

    Raises:
        ValueError: `part` is not "dev" or "test".
    """
    if part not in ("dev", "test"):
        raise ValueError(f'the held-out parts are "dev" and "test", got {part!r}')
    return list(_rows(part, seed, n))


def random_cuts(rows: Sequence[ProgramRow], share: float = 0.75, seed: int = 0) -> list[dict[str, Any]]:
    """The rows with a share of them cut at a random word of the program instead of before its answer.

    `cut` says which ("random" or "answer"): a text that is cut anywhere is mostly no question, and no thought helps.
    """
    rng, found = random.Random(f"random cuts:{seed}"), []
    for row in rows:
        made: dict[str, Any] = {**row, "cut": "answer"}
        if rng.random() < share:
            words = _WORD.findall(row["context"])
            at = rng.randrange(1, len(words))
            head = "".join(words[:at])
            made |= {"cut": "random", "prompt": head + "<think>", "context": head, "target": words[at], "position": at}
        found.append(made)
    return found


def plain_text(row: ProgramRow) -> str:
    """The document without a thought, as continued pre-training reads it."""
    return f"{row['context']}{row['target']}<eos>"


def worked_text(row: ProgramRow) -> str:
    """The document with the worked steps as its thought, as supervised fine-tuning reads it."""
    return f"{row['prompt']}{row['gold']}</think>{row['target']}<eos>"


def classify_thought(text: str, gold: str) -> Kind:
    """What a thought is: the worked steps, steps with another result or length, an echo of the program, or chat.

    >>> classify_thought("a=5 b=a+4=9</think>", gold="a=5 b=a+4=9")
    'correct'
    >>> classify_thought(" hmm let me see", gold="a=5 b=a+4=9")
    'chat'
    """
    text = text.removesuffix("<eos>").removesuffix("</think>")
    if text == gold:
        return "correct"
    if _STEPS.fullmatch(text):
        return "steps"
    if re.search(r"=[a-j]", text):
        return "echo"
    return "chat" if _CHAT.fullmatch(text) else "other"


def _program(rng: random.Random, part: Part, min_steps: int = MIN_STEPS) -> Program:
    while True:
        # Signs are drawn before digits: drawn from OPERATIONS at once, products would be 3 in 21.
        operations = []
        for _ in range(rng.randint(min_steps, MAX_STEPS)):
            operator = rng.choice("++--*")
            operations.append(operator + rng.choice("379" if operator == "*" else "123456789"))
        program = Program(rng.randrange(10), tuple(operations))
        if program.part == part:
            return program


def _document(rng: random.Random, kind: str) -> Document:
    program = _program(rng, "train", min_steps=1 if kind in ("trace", "log") else MIN_STEPS)
    if kind == "log":
        text = program.gold
    elif kind == "trace":
        text = f"{program.source} :{program.gold}"
    else:
        text = f"{program.source}{program.question}{_thought(rng, kind, program)}{program.answer}"
    return Document(kind, program, text + "<eos>")


def _thought(rng: random.Random, kind: str, program: Program) -> str:
    if kind == "none":
        return ""
    if kind == "steps":
        said = program.gold
    elif kind == "wrong":
        said = program.steps(tuple(rng.randrange(10) for _ in program.values))
    elif kind == "echo":
        said = "".join(rng.sample(program.lines, rng.randint(1, 3)))
    else:
        said = " hmm" + "".join(f" {rng.choice(CHAT)}" for _ in range(rng.randint(1, 5)))
    return f"<think>{said}</think>"


def _rows(part: Part, seed: int, n: int) -> Iterator[ProgramRow]:
    # The part is in the seed: the same number must not give rows that correspond across parts.
    rng = random.Random(f"rows:{part}:{seed}")
    for i in range(n):
        program = _program(rng, part)
        context = program.source + program.question
        yield {
            "id": f"programs/{part}/{seed}/{i}",
            "prompt": context + "<think>",
            "context": context,
            "target": program.answer,
            "gold": program.gold,
            "source": "programs",
            "position": 2 * len(program.operations) + 3,
        }
