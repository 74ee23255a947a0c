r"""RPT, reinforcement pre-training (arXiv 2506.08007): settings and its rule-based reward.

The policy reads x_<t, thinks, and says how the text goes on. It is paid 1 if the *bytes* of what it says begin the
bytes of the true continuation and end where one of its tokens ends, else 0. Nothing here asks a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from rl_think_ext.template import CLOSE_TAG

BOX = "\\boxed{"


@dataclass(frozen=True)
class RPTConfig:
    """Settings of RPT.

    Args:
        num_target_tokens: Tokens of the continuation that a prediction may span; a longer prediction is no match.
        malformed: What an output without a prediction is worth: zero, as in the paper, or unscorable (left out of its
            group). Counted either way.
        max_failed_steps: Raise after so many reward calls in a row without one scorable sample.
    """

    num_target_tokens: int = 32
    malformed: Literal["zero", "unscorable"] = "zero"
    max_failed_steps: int = 3

    def __post_init__(self) -> None:
        for name in ("num_target_tokens", "max_failed_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is at least 1, got {getattr(self, name)}")


class Continuation(NamedTuple):
    """The bytes of a true continuation, and after how many of them each of its tokens ends."""

    text: bytes
    boundaries: tuple[int, ...]


def continuation(pieces: Sequence[bytes]) -> Continuation:
    r"""A continuation out of the bytes of its tokens, in order.

    >>> continuation([b" the", b" \xc3", b"\xa9t"])
    Continuation(text=b' the \xc3\xa9t', boundaries=(4, 6, 8))
    """
    return Continuation(b"".join(pieces), tuple(accumulate(map(len, pieces))))


def prefix_match(prediction: bytes, text: bytes, boundaries: Sequence[int]) -> bool:
    r"""The paper's prefix matching: y is a prefix of x_>=t in bytes, and as long as a whole number of its tokens.

    Args:
        prediction: What was said; without a byte it is no match.
        text: The true continuation.
        boundaries: After how many bytes of `text` each token ends.

    >>> prefix_match(b" the", b" theory of", (4, 7, 10)), prefix_match(b" theo", b" theory of", (4, 7, 10))
    (True, False)
    """
    return bool(prediction) and len(prediction) in set(boundaries) and text.startswith(prediction)


def extract_prediction(output: str) -> str | None:
    r"""What an output predicts: the text in its last complete \boxed{} behind the first closing tag, else None.

    A box is complete when its braces balance; what stands in it is taken as it is, blanks included. So a prediction
    with unbalanced braces cannot be said in this form. One pass, whatever the output.

    >>> extract_prediction("hm </think>\\boxed{a} or rather \\boxed{ {b}}. \\boxed{c")
    ' {b}'
    >>> extract_prediction("\\boxed{a} </think> done") is None
    True
    """
    _, closed, answer = output.partition(CLOSE_TAG)
    if not closed:
        return None
    opened: list[int] = []
    last = (-1, -1)
    for at, character in enumerate(answer):
        if character == "{":
            opened.append(at)
        elif character == "}" and opened:
            start = opened.pop() + 1
            if answer.startswith(BOX, start - len(BOX)) and start >= len(BOX):
                last = max(last, (start, at))
    return answer[last[0] : last[1]] if last[0] >= 0 else None


def reward(prediction: str | None, target: Continuation, malformed: str = "zero") -> float | None:
    """1 for a prediction that matches, else 0; without a prediction 0, or None where that is "unscorable"."""
    if prediction is None:
        return 0.0 if malformed == "zero" else None
    # A lone surrogate stands in no text: it cannot match, and must not raise.
    said = prediction.encode("utf-8", "surrogatepass")
    return float(prefix_match(said, target.text, target.boundaries))
