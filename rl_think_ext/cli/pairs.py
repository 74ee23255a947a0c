"""`--set` given several times: every pair counts, where the parser would silently keep those of the last one."""

from __future__ import annotations

from collections.abc import Sequence

_FLAG = "--set"


def gathered(argv: Sequence[str]) -> list[str]:
    """The words of a command line with the pairs of every `--set` behind one, at the end.

    >>> gathered(["out", "--set", "a=1", "--steps", "1", "--set", "b=2", "c=3"])
    ['out', '--steps', '1', '--set', 'a=1', 'b=2', 'c=3']
    """
    rest: list[str] = []
    pairs: list[str] = []
    inside = False
    for word in argv:
        if word.startswith(f"{_FLAG}="):
            pairs.append(word.removeprefix(f"{_FLAG}="))
            inside = False
        elif word.startswith("-"):
            inside = word == _FLAG
            rest += [] if inside else [word]
        else:
            (pairs if inside else rest).append(word)
    return [*rest, _FLAG, *pairs] if pairs else list(argv)
