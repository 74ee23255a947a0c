"""The miniature task of RLPT: texts whose next sentences can only be told by working a little program out.

    Take a=5 b=a+4 c=b*3 d=c-6 e=d+1 f=e*3. So d is 1, so e is 2. So f is 6.

Three results follow the program, in sentences of one or two: where a sentence ends is chance, what it says is not. The
program that decides what is held out is that of RLP's task. `checked` says what a prediction is worth, exactly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rl_think_ext.methods.rlpt import Reference, Task, render_asr, render_msr, words
from rl_think_ext.scoring.prediction import Segment
from rl_think_ext.tiny.programs import NAMES, Part, Program

NUM_OPERATIONS, FIRST_RESULT = 5, 3
NUM_RESULTS = NUM_OPERATIONS + 1 - FIRST_RESULT
# How many results stand in every sentence; the first sentence has one as often as two.
GROUPINGS = ((1, 2), (2, 1), (1, 1, 1))
_SHARES = (0.3, 0.5, 0.2)
_CLAUSE = re.compile(r"so ([a-z]) is (\d)")


@dataclass(frozen=True)
class Document:
    """A program and the sentences that tell its last three results."""

    program: Program
    grouping: tuple[int, ...]

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The program, and the results."""
        told, found = list(range(FIRST_RESULT, NUM_OPERATIONS + 1)), [f"Take {self.program.source}."]
        for size in self.grouping:
            found.append(sentence(self.program.values, told[:size]))
            told = told[size:]
        return tuple(found)

    @property
    def text(self) -> str:
        """The document."""
        return " ".join(self.sentences)

    @property
    def targets(self) -> range:
        """The sentences that have one before and one behind them."""
        return range(1, len(self.sentences) - 1)

    def told_before(self, target: int) -> int:
        """The first result that the target sentence tells, as an index of the program's values."""
        return FIRST_RESULT + sum(self.grouping[: target - 1])

    def segment(self, task: Task, target: int, num_reference_segments: int = 3) -> Segment:
        """One position of the text, as `rl-think data rlpt` cuts it; MSR's reference stops before what it shows."""
        following = self.sentences[target : target + (num_reference_segments if task == "asr" else 1)]
        ends, text = [], ""
        for said in following:
            text += (" " if text else "") + said
            ends.append(len(text))
        context = "".join(f"{said} " for said in self.sentences[:target])
        behind = f" {self.sentences[target + 1]}" if task == "msr" else ""
        return Segment(task, context, Reference(text, tuple(ends)), behind)


def sentence(values: Sequence[int], told: Sequence[int]) -> str:
    """A sentence that tells these of a program's results.

    >>> sentence((5, 9, 7, 1, 2, 6), [3, 4])
    'So d is 1, so e is 2.'
    """
    text = ", ".join(f"so {NAMES[i]} is {values[i]}" for i in told)
    return f"S{text[1:]}."


def prompt(segment: Segment) -> str:
    """What the policy is asked at a position."""
    if segment.task == "asr":
        return render_asr(segment.context)
    return render_msr(segment.context, segment.next_segment)


def documents(part: Part, seed: int, n: int) -> list[Document]:
    """The first `n` documents of a part; training sees "train" alone, and "test" is for the last measurement."""
    rng = random.Random(f"segments:{part}:{seed}")
    return [drawn(part, rng) for _ in range(n)]


def drawn_program(part: Part, rng: random.Random, num_operations: int = NUM_OPERATIONS) -> Program:
    """One program of a part."""
    while True:
        signs = rng.choices("++--*", k=num_operations)
        operations = tuple(sign + rng.choice("379" if sign == "*" else "123456789") for sign in signs)
        program = Program(rng.randrange(10), operations)
        if program.part == part:
            return program


def drawn(part: Part, rng: random.Random) -> Document:
    """One document of a part."""
    return Document(drawn_program(part, rng), rng.choices(GROUPINGS, _SHARES)[0])


def positions(part: Part, seed: int, n: int, task: Task) -> Iterator[tuple[Document, int, Segment]]:
    """One position of every document, chosen at random, for a measurement."""
    rng = random.Random(f"positions:{part}:{seed}")
    for document in documents(part, seed, n):
        target = rng.choice(document.targets)
        yield document, target, document.segment(task, target)


def checked(document: Document, target: int, prediction: str | None) -> dict[str, float]:
    """What a prediction is worth, by the program and not by the reference.

    `prefix`: it tells the first result of the target sentence, and all that it tells is right and in order;
    `strict`: it says what the sentence says, no more and no less; `results`: how many right ones it begins with.

    >>> text = Document(Program(5, ("+4", "*3", "-6", "+1", "*3")), (1, 2))
    >>> checked(text, 1, "So d is 1, so e is 2.")
    {'prefix': 1.0, 'strict': 0.0, 'results': 2.0}
    """
    said = " ".join(words(prediction or ""))
    clauses, first = _CLAUSE.findall(said), document.told_before(target)
    right = 0
    for name, value in clauses:
        at = first + right
        if at > NUM_OPERATIONS or (name, int(value)) != (NAMES[at], document.program.values[at]):
            break
        right += 1
    # A clause that was begun and not ended is left to the reference's words, as any other beginning.
    whole = said.startswith(" ".join(f"so {name} is {value}" for name, value in clauses))
    text = " ".join(words(" ".join(document.sentences[target:])))
    return {
        "prefix": float(right > 0 and right == len(clauses) and whole and text.startswith(said)),
        "strict": float(said == " ".join(words(document.sentences[target]))),
        "results": float(right),
    }


def document_rows(drawn: Sequence[Document]) -> list[dict[str, Any]]:
    """Documents as `rl-think data rlpt` reads them."""
    return [{"id": f"programs/{i}", "text": document.text} for i, document in enumerate(drawn)]
