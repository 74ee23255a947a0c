"""What the models of the chat task learn from: mediocre thoughts and answers, and pairs of answers.

The mistakes are those of a writer who slips: a wrong step and all that follows from it, a letter forgotten or let in,
two swapped, a wrong number, a form that is broken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from rl_think_ext.tiny.chats import LETTERS, Part, Request, drawn, prompt_rows, requests, satisfaction

CHAT = "well hmm okay so let me see this is hard maybe now".split()
# How a written example goes: the share of thoughts with every step right, with a wrong step, and of idle chat.
QUALITY: Mapping[str, float] = {"right": 0.35, "wrong": 0.45, "chat": 0.2}


def example(rng: random.Random, request: Request) -> tuple[str, str]:
    """A thought and the answer that follows from it, as a mediocre writer would write them (`QUALITY`)."""
    kind = rng.choices(list(QUALITY), list(QUALITY.values()))[0]
    kept, count = request.kept, len(request.kept)
    if kind == "chat":
        thought = " ".join(["hmm", *rng.choices(CHAT, k=rng.randint(1, 6))])
        return thought, request.reply(request.ordered(_spoilt(rng, request, kept)), max(1, count + rng.randint(-2, 2)))
    ordered = request.ordered(kept)
    if kind == "wrong":
        at = rng.choice(["keep", "sort", "count"][: 1 + (request.order != "given") + request.counted])
        if at == "keep":
            kept = _spoilt(rng, request, kept)
            ordered, count = request.ordered(kept), len(kept)
        elif at == "sort" and request.order != "given":
            ordered = _swapped(rng, ordered)
        else:
            count = max(1, count + rng.choice([-2, -1, 1, 2]))
    return request.steps(kept, ordered, count), request.reply(ordered, count)


def sft_rows(seed: int, n: int) -> list[dict[str, Any]]:
    """Warm-start examples in the schema of SFT sets: well-formed, of mixed quality."""
    rng = random.Random(f"sft:{seed}")
    rows = []
    for row, request in zip(prompt_rows("train", seed + 1000, n), requests("train", seed + 1000, n), strict=True):
        thought, answer = example(rng, request)
        rows.append({"id": row["id"], "prompt": row["prompt"], "thought": thought, "answer": answer, "source": "chats"})
    return rows


def pairs(part: Part, seed: int, n: int) -> Iterator[tuple[Request, str, str]]:
    """Preference pairs: a request, the answer that keeps more of its constraints, and the one that keeps fewer."""
    rng, found = random.Random(f"pairs:{part}:{seed}"), 0
    for request in drawn(part, rng):
        first, second = _attempt(rng, request), _attempt(rng, request)
        better = satisfaction(request, first) - satisfaction(request, second)
        if better:
            yield (request, first, second) if better > 0 else (request, second, first)
            found += 1
            if found == n:
                return


def _attempt(rng: random.Random, request: Request) -> str:
    """An answer with up to three mistakes of every kind that there is, or one that a mediocre writer gave."""
    if rng.random() < 0.25:
        return example(rng, request)[1]
    letters, count = request.ordered(request.kept), len(request.kept)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 3])):
        change = rng.choice([_spoilt, _spoilt, _short, _short, _mixed, _foreign, _repeated, None])
        if change is None:
            count = max(1, count + rng.choice([-2, -1, 1, 2]))
        else:
            before, letters = letters, change(rng, request, letters)
            count = count + len(letters) - len(before) if rng.random() < 0.5 else count
    answer = request.reply(letters, max(0, count))
    return answer if rng.random() < 0.85 else _misshapen(rng, request, answer, count)


def _misshapen(rng: random.Random, request: Request, answer: str, count: int) -> str:
    """A number that nobody asked for, or none; or an answer that begins late, ends early or says things twice."""
    words = answer.split()
    if rng.random() < 0.6:
        return " ".join(words[2:] if request.counted else ["count", str(max(0, count)), *words])
    cut = rng.randrange(len(words) + 1)
    return " ".join(rng.choice([words[1:], words[:cut], words[cut:], [*words, *words], ["keep", *words]]))


def _spoilt(rng: random.Random, request: Request, letters: str) -> str:
    """Up to two letters are forgotten, or let in that a clause takes out; the order stays."""
    for _ in range(rng.randint(1, 2)):
        out = [letter for letter in request.letters if letter not in letters]
        if out and (rng.random() < 0.5 or len(letters) < 3):
            position = rng.randrange(len(letters) + 1)
            letters = letters[:position] + rng.choice(out) + letters[position:]
            inside = [letter for letter in request.letters if letter in letters]
            letters = request.ordered("".join(inside)) if len(inside) == len(letters) else letters
        elif len(letters) > 2:
            letters = letters.replace(rng.choice(letters), "", 1)
    return letters


def _swapped(rng: random.Random, letters: str) -> str:
    items = list(letters)
    i, j = rng.sample(range(len(items)), 2)
    items[i], items[j] = items[j], items[i]
    return "".join(items)


def _mixed(rng: random.Random, request: Request, letters: str) -> str:
    if len(letters) < 2:
        return letters
    return _swapped(rng, letters) if rng.random() < 0.5 else "".join(rng.sample(letters, len(letters)))


def _short(rng: random.Random, request: Request, letters: str) -> str:
    """One or two letters are forgotten: the mistake that is hardest to see, and the first that a policy finds."""
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(max(1, len(letters)))
        letters = letters[:at] + letters[at + 1 :] if len(letters) > 1 else letters
    return letters


def _foreign(rng: random.Random, request: Request, letters: str) -> str:
    """One letter is replaced by any letter, or any letter is put in."""
    at = rng.randrange(max(1, len(letters)))
    return letters[:at] + rng.choice(LETTERS) + letters[at + rng.randint(0, 1) :]


def _repeated(rng: random.Random, request: Request, letters: str) -> str:
    at = rng.randrange(max(1, len(letters)))
    return letters[:at] + letters[at : at + 1] * 2 + letters[at + 1 :]
