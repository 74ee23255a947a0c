"""The miniature task of RLMT: little requests with constraints that anybody can check, and answers that keep some.

    user        letters k c a m b e , sorted , no vowels , count first
    assistant   <think>\\nkeep k c m b sort b c k m count 4\\n</think>\\n\\ncount 4 list b c k m

Whoever answers at once has to know the number before the first letter; a thought can work it out. `checks` says which
constraints an answer keeps; neither the policy nor the reward model ever reads it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Part = Literal["train", "dev", "test"]
Order = Literal["given", "sorted", "backwards"]

LETTERS = "abcdefghijklmnopqrst"
VOWELS = "aeio"
FEWEST, MOST = 4, 7
_SALT = b"rl_think_ext.tiny.chats.1:"


@dataclass(frozen=True)
class Request:
    """A prompt: letters, and what is to be done with them; `clauses` are the constraints in the order of the text."""

    letters: str
    clauses: tuple[str, ...]

    @property
    def text(self) -> str:
        """What the user says."""
        return " , ".join([" ".join(["letters", *self.letters]), *self.clauses])

    @property
    def order(self) -> Order:
        """How the answer has to be ordered."""
        return "sorted" if "sorted" in self.clauses else "backwards" if "backwards" in self.clauses else "given"

    @property
    def counted(self) -> bool:
        """Whether the answer has to begin with the number of its letters."""
        return "count first" in self.clauses

    @cached_property
    def kept(self) -> str:
        """The letters that no clause takes out, in the order of the prompt."""
        return "".join(letter for letter in self.letters if all(_allows(clause, letter) for clause in self.clauses))

    @property
    def part(self) -> Part:
        """Where the request belongs, decided by its set of letters: a held-out set is in no training text."""
        bucket = zlib.crc32(_SALT + "".join(sorted(self.letters)).encode()) % 20
        return "dev" if bucket == 0 else "test" if bucket == 1 else "train"

    def ordered(self, letters: str) -> str:
        """These letters in the order that is asked for."""
        return letters if self.order == "given" else "".join(sorted(letters, reverse=self.order == "backwards"))

    @property
    def thought(self) -> str:
        """The worked steps."""
        return self.steps(self.kept, self.ordered(self.kept), len(self.kept))

    @property
    def answer(self) -> str:
        """The answer that keeps every constraint."""
        return self.reply(self.ordered(self.kept), len(self.kept))

    def steps(self, kept: str, ordered: str, count: int) -> str:
        """The steps with these results; a step that the request does not ask for is left out."""
        sort = " ".join(["", "sort", *ordered]) if self.order != "given" else ""
        return " ".join(["keep", *kept]) + sort + (f" count {count}" if self.counted else "")

    def reply(self, letters: str, count: int) -> str:
        """An answer with these letters and this number."""
        return (f"count {count} " if self.counted else "") + " ".join(["list", *letters])


def _allows(clause: str, letter: str) -> bool:
    if clause == "no vowels":
        return letter not in VOWELS
    side, bound = clause[:-1].rstrip(), clause[-1]
    return not (side == "none after" and letter > bound) and not (side == "none before" and letter < bound)


def checks(request: Request, answer: str | None) -> dict[str, bool]:
    """Which constraints an answer keeps, by name: form, only (what may be there), all, order and, if asked, count.

    >>> checks(Request("bca", ("sorted",)), "list a b")
    {'form': True, 'only': True, 'all': False, 'order': True}
    """
    words = (answer or "").split()
    said = words[1] if len(words) > 1 and words[0] == "count" else None
    head = (["count", said] if said is not None else []) + ["list"]
    items = words[len(head) :] if words[: len(head)] == head else []
    found = {
        "form": bool(items) and (said is not None) == request.counted and set(items) <= set(LETTERS),
        "only": bool(items) and set(items) <= set(request.kept) and len(set(items)) == len(items),
        "all": set(items) >= set(request.kept),
        "order": bool(items) and _is_ordered(request, items),
    }
    return {**found, "count": said == str(len(request.kept))} if request.counted else found


def _is_ordered(request: Request, items: Sequence[str]) -> bool:
    known = "".join(item for item in items if item in set(request.letters))
    asked = sorted(known, key=request.letters.index) if request.order == "given" else request.ordered(known)
    return len(known) > 1 and known == "".join(asked)


def satisfaction(request: Request, answer: str | None) -> float:
    """The share of the constraints that an answer keeps."""
    found = checks(request, answer)
    return sum(found.values()) / len(found)


def requests(part: Part, seed: int, n: int) -> list[Request]:
    """The first `n` requests of a part; training sees "train" alone, and "test" is for the last measurement."""
    return [request for _, request in zip(range(n), drawn(part, random.Random(f"{part}:{seed}")), strict=False)]


def prompt_rows(part: Part, seed: int, n: int) -> list[dict[str, Any]]:
    """Prompts in the schema of `rl-think data rlmt`, without the number of tokens."""
    return [
        {"id": f"chats/{part}/{seed}/{i}", "prompt": messages(request), "source": "chats"}
        for i, request in enumerate(requests(part, seed, n))
    ]


def messages(request: Request) -> list[dict[str, str]]:
    """The request as a chat of one message."""
    return [{"role": "user", "content": request.text}]


def read(text: str) -> Request:
    """The request that a prompt's text says.

    >>> read("letters b c a , sorted").letters
    'bca'
    """
    letters, *clauses = text.split(" , ")
    return Request("".join(letters.split()[1:]), tuple(clauses))


def drawn(part: Part, rng: random.Random) -> Iterator[Request]:
    """Requests of a part without end; at least two clauses each, and at least two letters to answer with."""
    while True:
        letters = "".join(rng.sample(LETTERS, rng.randint(FEWEST, MOST)))
        clauses = [clause for clause, share in (("no vowels", 0.5), ("count first", 0.6)) if rng.random() < share]
        if rng.random() < 0.6:
            clauses.append(rng.choice(["none after ", "none before "]) + rng.choice(LETTERS[4:16]))
        if rng.random() < 0.8:
            clauses.append(rng.choice(["sorted", "sorted", "backwards"]))
        rng.shuffle(clauses)
        request = Request(letters, tuple(clauses))
        if len(clauses) > 1 and len(request.kept) > 1 and request.part == part:
            yield request
