"""What the policy of RLPT's miniature task has read: arithmetic, plain texts, and chats by a mediocre writer.

Only a tenth of the writer's reasoning is right; the rest is wrong, an echo of the program, chat or nothing. What is
predicted follows the steps where there are any.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rl_think_ext.template import CLOSE_PREDICTION, OPEN_PREDICTION
from rl_think_ext.tiny.programs import CHAT, NAMES, Program
from rl_think_ext.tiny.segments import NUM_OPERATIONS, Document, drawn, drawn_program, prompt, sentence

QUALITY: Mapping[str, float] = {"right": 0.10, "wrong": 0.22, "echo": 0.20, "none": 0.20, "chat": 0.28}
# The rows of pre-training; a pack is facts, traces and plain texts, one after another up to the length of a chat.
MIX: Mapping[str, float] = {"pack": 0.45, "segment": 0.4, "quiz": 0.15}
PACK_CHARS = 260


class Chat(NamedTuple):
    """What the user asks and the assistant says; `prompt` is None where the text is no chat."""

    prompt: str | None
    said: str


def rows(seed: int) -> Iterator[Chat]:
    """Pre-training texts without end."""
    rng = random.Random(f"examples:{seed}")
    while True:
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        yield Chat(None, pack(rng)) if kind == "pack" else segment_chat(rng) if kind == "segment" else quiz_chat(rng)


def pack(rng: random.Random) -> str:
    """Worked programs of one to five steps, with and without the program before them, and plain documents."""
    text = ""
    while len(text) < PACK_CHARS:
        program = drawn_program("train", rng, rng.randint(1, NUM_OPERATIONS))
        one = rng.choices([program.gold, f"{program.source} :{program.gold}", drawn("train", rng).text], [35, 50, 15])
        text += one[0] + "<|im_end|>"
    return text.removesuffix("<|im_end|>")


def reasoning(
    rng: random.Random, program: Program, quality: Mapping[str, float] = QUALITY
) -> tuple[str, tuple[int, ...]]:
    """Some reasoning about a program, and the results that follow from it."""
    kind = rng.choices(list(quality), list(quality.values()))[0]
    if kind == "right":
        return program.gold, program.values
    if kind == "wrong":
        values = _slipped(rng, program)
        return program.steps(values), values
    if kind == "echo":
        return "".join(rng.sample(program.lines, rng.randint(1, 3))), program.values
    if kind == "chat":
        return "hmm" + "".join(f" {rng.choice(CHAT)}" for _ in range(rng.randint(1, 5))), program.values
    return "", program.values


def _slipped(rng: random.Random, program: Program) -> tuple[int, ...]:
    """Results from some step on are wrong."""
    at = rng.randint(1, len(program.operations))
    return (*program.values[:at], *(rng.randrange(10) for _ in program.values[at:]))


def output(
    rng: random.Random,
    document: Document,
    target: int,
    quality: Mapping[str, float] = QUALITY,
    one_more: float = 0.2,
) -> str:
    """Reasoning and a prediction between its tags: the sentence that is asked for, now and then one result more."""
    thought, values = reasoning(rng, document.program, quality)
    first, end = document.told_before(target), document.told_before(target + 1)
    said = sentence(values, range(first, end))
    if end <= NUM_OPERATIONS and rng.random() < one_more:
        said += " " + sentence(values, range(end, end + 1))
    return f"{thought}{OPEN_PREDICTION} {said}{CLOSE_PREDICTION}"


def segment_chat(rng: random.Random, quality: Mapping[str, float] = QUALITY, malformed: float = 0.06) -> Chat:
    """ASR or MSR at one position of a training document, answered."""
    document = drawn("train", rng)
    target = rng.choice(document.targets)
    asked = prompt(document.segment(rng.choice(["asr", "msr"]), target))
    said = output(rng, document, target, quality)
    if rng.random() < malformed:
        said = said.replace(rng.choice([OPEN_PREDICTION, CLOSE_PREDICTION]), "")
    return Chat(asked, said)


def quiz_chat(rng: random.Random, quality: Mapping[str, float] = QUALITY) -> Chat:
    """An instruction: what is the last variable? The answer stands in a box, where verifiers of maths look for it."""
    program = drawn_program("train", rng, rng.randint(3, NUM_OPERATIONS))
    thought, values = reasoning(rng, program, quality)
    return Chat(question(program), f"{thought} {boxed(values[-1])}")


def question(program: Program) -> str:
    """What a quiz asks.

    >>> question(Program(5, ("+4",)))
    'Take a=5 b=a+4. What is b?'
    """
    return f"Take {program.source}. What is {NAMES[len(program.operations)]}?"


def boxed(value: int) -> str:
    """A number as an answer in LaTeX, which math-verify reads; between dollars alone it would not."""
    return f"\\boxed{{{value}}}"


def quiz_rows(seed: int, n: int) -> list[dict[str, Any]]:
    """Questions with their solutions, for TRL's `accuracy_reward`."""
    rng, found = random.Random(f"quizzes:{seed}"), []
    for i in range(n):
        program = drawn_program("train", rng, rng.randint(3, NUM_OPERATIONS))
        asked = [{"role": "user", "content": question(program)}]
        found.append({"id": f"quizzes/{seed}/{i}", "prompt": asked, "solution": boxed(program.values[-1])})
    return found
