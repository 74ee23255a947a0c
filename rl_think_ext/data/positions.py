"""Where a document is cut into context and target: samplers of positions, seeded per document.

Boundary rule: a cut after a sentence lies right behind its last character, so the white space before the next word
belongs to the target. On token ids the cut lies behind the token that ends there, or that holds nothing but white space
behind the end (it then belongs to the context); where there is no such token, there is no position. A position is the
number of units (characters or tokens) that stand before the cut.
"""

from __future__ import annotations

import hashlib
import math
import random
import unicodedata
from collections.abc import Sequence
from typing import Literal

Sampler = Literal["sentence", "random", "stride", "entropy"]
Offsets = Sequence[tuple[int, int]]


def document_seed(seed: int, document_id: str) -> int:
    """A seed of 64 bits for one document: neither order nor worker count can change what is drawn for it."""
    digest = hashlib.sha256(f"{seed}\0{document_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def sample_positions(
    sampler: Sampler,
    length: int,
    *,
    seed: int,
    document_id: str,
    num_positions: int | None = None,
    min_context: int = 1,
    max_context: int | None = None,
    stride: int = 64,
    ends: Sequence[int] = (),
    entropies: Sequence[float] | None = None,
    min_entropy: float | None = None,
) -> list[int]:
    """Cuts of one document of `length` units in ascending order, `num_positions` of them or (None) all.

    "sentence" takes `ends`; "random" any unit; "stride" every `stride`-th; "entropy" the units with the highest
    entropy of the next token, `entropies[i]` being that of unit i given those before it, or those with at least
    `min_entropy` of it. At least one unit is left as target. Contexts outside [min_context, max_context] are no
    candidates.

    Raises:
        ValueError: an unknown sampler, or "entropy" without entropies of every unit.

    >>> sample_positions("stride", 10, seed=0, document_id="a", stride=4)
    [4, 8]
    >>> sample_positions("entropy", 4, seed=0, document_id="a", num_positions=1, entropies=[0.0, 0.1, 2.0, 0.3])
    [2]
    >>> sample_positions("entropy", 4, seed=0, document_id="a", entropies=[0.0, 0.1, 2.0, 0.3], min_entropy=0.2)
    [2, 3]
    """
    low = max(min_context, 1)
    high = length - 1 if max_context is None else min(length - 1, max_context)
    candidates = _candidates(sampler, low, high, stride, ends)
    if sampler == "entropy":
        return _most_uncertain(candidates, length, entropies, num_positions, min_entropy)
    if num_positions is None or num_positions >= len(candidates):
        return list(candidates)
    return sorted(random.Random(document_seed(seed, document_id)).sample(candidates, num_positions))


def count_overlong(
    sampler: Sampler, length: int, max_context: int, *, stride: int = 64, ends: Sequence[int] = ()
) -> int:
    """How many cuts a maximum takes away.

    >>> count_overlong("stride", 10, 5, stride=4)
    1
    """
    return len(_candidates(sampler, max(max_context + 1, 1), length - 1, stride, ends))


def _candidates(sampler: Sampler, low: int, high: int, stride: int, ends: Sequence[int]) -> Sequence[int]:
    if sampler == "sentence":
        return sorted({end for end in ends if low <= end <= high})
    if sampler == "stride":
        return range(-(-low // stride) * stride, high + 1, stride)
    if sampler in ("random", "entropy"):
        return range(low, high + 1)
    raise ValueError(f"there is no sampler {sampler!r}")


def _most_uncertain(
    candidates: Sequence[int],
    length: int,
    entropies: Sequence[float] | None,
    num_positions: int | None,
    least: float | None,
) -> list[int]:
    if entropies is None or len(entropies) != length:
        given = "none" if entropies is None else len(entropies)
        raise ValueError(f"the sampler 'entropy' needs {length} entropies, got {given}")
    finite = [c for c in candidates if math.isfinite(entropies[c]) and (least is None or entropies[c] >= least)]
    # Ties go to the earlier position, so that the choice never depends on the sort.
    return sorted(sorted(finite, key=lambda c: (-entropies[c], c))[:num_positions])


def token_ends(ends: Sequence[int], offsets: Offsets, text: str) -> tuple[list[int], int]:
    r"""Cuts on tokens for sentence ends in characters, and the number of ends at which there is no cut.

    A token that holds the end and, behind it, white space alone (".\n\n") still ends the sentence: its white space
    then belongs to the context. A token that holds more has no cut inside.

    >>> token_ends([3, 6], [(0, 3), (3, 5), (5, 8)], "One Two.")
    ([1], 1)
    >>> token_ends([4], [(0, 3), (3, 6), (6, 9)], "One.\n\nTwo")
    ([2], 0)
    """
    # The last token that ends at a character: the pieces of one emoji all bear the same offsets.
    behind = {stop: index + 1 for index, (start, stop) in enumerate(offsets) if start < stop}
    for stop, cut in list(behind.items()):
        end = offsets[cut - 1][0] + len(text[offsets[cut - 1][0] : stop].rstrip())
        if end > offsets[cut - 1][0]:
            behind.setdefault(end, cut)
    cuts = [behind[end] for end in ends if end in behind]
    return cuts, len(ends) - len(cuts)


def splits_character(cut: int, offsets: Offsets) -> bool:
    """Whether a cut on tokens lies between the pieces of one character."""
    return 0 < cut < len(offsets) and offsets[cut][0] < offsets[cut - 1][1]


def splits_cluster(text: str, cut: int) -> bool:
    r"""Whether a cut on characters tears what is read as one: an accent, a joined emoji, CR LF.

    >>> splits_cluster("a\r\n", 2), splits_cluster("ab", 1)
    (True, False)
    """
    if not 0 < cut < len(text):
        return False
    before, after = text[cut - 1], text[cut]
    joined = before == "\u200d" or after == "\u200d" or "\U0001f3fb" <= after <= "\U0001f3ff"
    return joined or before + after == "\r\n" or unicodedata.category(after) in ("Mn", "Me", "Mc")
