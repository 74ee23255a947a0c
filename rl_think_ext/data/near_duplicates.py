"""Texts that stood in the input before: exactly, but for their form, or nearly (MinHash over runs of words).

Nearly means that the sets of runs of five words have a Jaccard similarity of `threshold`. What is chosen is the
*recall* at the threshold: bands and the cut of the estimate follow from it.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rl_think_ext.data.band_index import BandIndex
from rl_think_ext.data.words import gram_hashes, normalised, word_hashes
from rl_think_ext.errors import UserError

Minima = npt.NDArray[np.uint32]
# A hyphen, a star or a stroke is a sign only beside a number: "x - 2", not "well-known" or "and/or".
_SIGN = re.compile(r"[-+*/=<>≤≥≠^×÷±−](?:(?<![-*/])|(?<=[0-9].)|(?<=[0-9] .)|(?= ?[0-9]))")
_BLOCK = 4096  # runs of words that are permuted at a time: 4096 x 128 x 4 bytes


class Exact:
    """Says of each text whether an equal one was given before; equal is what is equal when normalised.

    Keeps 16 bytes of each text (about 100 with the set around them).

    >>> seen = Exact()
    >>> seen("One text."), seen("one  TEXT.")
    (False, True)
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, text: str) -> bool:
        """True from the second time on."""
        return self.add(self.key(text))

    @staticmethod
    def key(text: str) -> bytes:
        """16 bytes; a worker process can compute them."""
        return hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def add(self, key: bytes) -> bool:
        """Whether the key was there before; in the order of the input."""
        before = len(self._seen)
        self._seen.add(key)
        return len(self._seen) == before


class Bands(NamedTuple):
    """`num` bands of `rows` minima each; `num_perm` = num x rows of the permutations are used."""

    num: int
    rows: int
    num_perm: int


def bands(num_perm: int, threshold: float, recall: float) -> Bands:
    """The bands that find a pair at the threshold with at least the wanted probability, as precisely as they can.

    A pair of similarity s shares all r minima of a band with probability s^r, and one of b bands with
    1 - (1 - s^r)^b. Taken are the most rows r for which some b with b r <= num_perm reaches the recall (more rows let
    fewer dissimilar pairs through), and then the least such b.

    Raises:
        UserError: no bands reach the recall with so few permutations, or a number out of range.

    >>> bands(128, 0.8, 0.95)
    Bands(num=13, rows=7, num_perm=91)
    """
    if num_perm < 1 or not 0.0 < threshold <= 1.0 or not 0.0 < recall < 1.0:
        raise UserError(
            "`num_perm` is at least 1, `threshold` above 0 and up to 1, `recall` between 0 and 1; got "
            f"{num_perm}, {threshold:g}, {recall:g}"
        )
    for rows in range(num_perm, 0, -1):
        num = _least_bands(threshold**rows, recall, num_perm // rows)
        if num is not None:
            return Bands(num, rows, num * rows)
    raise UserError(
        f"{num_perm} permutations cannot find pairs of similarity {threshold:g} with a recall of {recall:g}: raise "
        "`num_perm`, or lower `recall`"
    )


def _least_bands(shared: float, recall: float, most: int) -> int | None:
    """The least number of bands that reaches the recall where one band is shared with probability `shared`."""
    if shared >= 1.0:
        return 1
    if 1.0 - (1.0 - shared) ** most < recall:
        return None
    guess = max(1, math.floor(math.log1p(-recall) / math.log1p(-shared)) - 1)
    return next(num for num in range(guess, most + 1) if 1.0 - (1.0 - shared) ** num >= recall)


@dataclass(frozen=True, kw_only=True)
class NearDuplicateConfig:
    """What counts as a near-duplicate, and how surely it is found.

    Args:
        threshold: Jaccard similarity of the sets of runs of words from which on two texts are near-duplicates.
        recall: Which share of the pairs at the threshold is found at least; of more similar pairs, more.
        num_perm: The most permutations of a signature: more are more precise, and cost time and 4 bytes each.
        ngram: Words of a run (characters in scripts without spaces).
        seed: Of the permutations.
        verify: Compare the true sets of candidates: exact, for 4 more bytes per word of every text that stays.
    """

    threshold: float = 0.8
    recall: float = 0.95
    num_perm: int = 128
    ngram: int = 5
    seed: int = 1
    verify: bool = False

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise UserError(f"`ngram` is at least 1, got {self.ngram}")
        self.bands()

    def bands(self) -> Bands:
        """Bands and estimate lose pairs one after the other: with the root of the recall each, both keep it.

        They are no less than independent: both need minima that agree (Harris' inequality).
        """
        return bands(self.num_perm, self.threshold, self.recall if self.verify else math.sqrt(self.recall))

    def least_equal(self) -> int:
        """How many of the minima must agree: pairs at the threshold reach it with the root of the recall."""
        num = self.bands().num_perm
        if self.threshold == 1.0:
            return num
        hit, miss, tail = math.log(self.threshold), math.log1p(-self.threshold), 0.0
        for equal in range(num, 0, -1):
            # In logarithms: of 1,100 minima the binomial coefficient is no float any more.
            ways = math.lgamma(num + 1) - math.lgamma(equal + 1) - math.lgamma(num - equal + 1)
            tail += math.exp(ways + equal * hit + (num - equal) * miss)
            if tail >= math.sqrt(self.recall):
                return equal
        return 0


class NearDuplicates:
    """Finds for each text an earlier one that is nearly the same; the first of a cluster stays.

    `signature` depends on the text alone, so that worker processes can compute it; `add` is called in the order of the
    input. Only texts that stay are compared with: what goes is near one that stays. A text without a single word has
    an empty signature and is never a near-duplicate.

    >>> near = NearDuplicates()
    >>> text = "one two three four five six seven eight nine ten"
    >>> near.add("a", near.signature(text)), near.add("b", near.signature(text.upper() + "!"))
    (None, 'a')
    """

    def __init__(self, config: NearDuplicateConfig | None = None) -> None:
        self.config = config or NearDuplicateConfig()
        self.bands = self.config.bands()
        self._least_equal = self.config.least_equal()
        self._keys: list[Hashable] = []
        self._sets: list[Minima] = []
        self._index = BandIndex(self.bands.num, self.bands.rows)

    def signature(self, text: str) -> bytes:
        """The minima (4 bytes each), behind them the hashes of all runs of words where `verify` needs them."""
        unique = np.unique(self.shingles(text))
        if not len(unique):
            return b""
        minima = self.minima(unique).astype("<u4").tobytes()
        return minima + unique.astype("<u4").tobytes() if self.config.verify else minima

    def minima(self, shingles: Minima) -> Minima:
        """[num_perm] the least value of at least one hashed shingle under each permutation."""
        sketch = self._permutations.copy()
        for first in range(0, len(shingles), _BLOCK):
            sketch.update_batch(shingles[first : first + _BLOCK].tolist())
        return sketch.hashvalues

    def shingles(self, text: str) -> Minima:
        """Hashes of the runs of words; a text that is shorter than one run is one by itself.

        The signs of all formulas are one more: "2 + 3" and "2 - 3" have the same words, and are not the same exercise.
        """
        hashes = word_hashes(text)
        grams = gram_hashes(hashes, min(self.config.ngram, len(hashes)) or 1)
        shingles = (grams >> np.uint64(32)).astype(np.uint32)
        signs = "".join(_SIGN.findall(text)) if len(hashes) else ""
        return np.append(shingles, np.uint32(zlib.crc32(signs.encode()))) if signs else shingles

    @cached_property
    def _permutations(self) -> Any:
        """datasketch's MinHash that each signature starts from; it is given hashes, not text."""
        from datasketch import MinHash

        return MinHash(num_perm=self.bands.num_perm, seed=self.config.seed, hashfunc=int, scheme="affine32")

    def __getstate__(self) -> dict[str, Any]:
        """A copy for a worker process computes signatures: what was found so far stays here."""
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    def add(self, key: Hashable, signature: bytes) -> Any:
        """The key of the earliest text that this one nearly repeats; None where it stays.

        Raises:
            ValueError: a signature whose length is that of other settings.
        """
        if not signature:
            return None
        values = np.frombuffer(signature, dtype="<u4")
        num = self.bands.num_perm
        if len(values) < num or (len(values) > num) != self.config.verify:
            raise ValueError(f"the signature of {key!r} was made with other settings")
        minima, shingles = values[:num], values[num:]
        found = self._index.find(minima)
        for number in self._near(found.numbers, minima, shingles):
            return self._keys[number]
        self._index.insert(minima, found.slots)
        self._keys.append(key)
        if self.config.verify:
            self._sets.append(shingles.copy())
        return None

    def _near(self, numbers: npt.NDArray[np.int64], minima: Minima, shingles: Minima) -> Iterator[int]:
        """Which of the candidates are near-duplicates, in the order of the input."""
        if not self.config.verify:
            equal = (self._index.minima(numbers) == minima).sum(axis=1)
            yield from numbers[equal >= self._least_equal].tolist()
            return
        for number in numbers.tolist():
            earlier = self._sets[number]
            num_shared = np.intersect1d(earlier, shingles, assume_unique=True).size
            if num_shared >= self.config.threshold * (len(earlier) + len(shingles) - num_shared) - 1e-9:
                yield number

    def facts(self) -> dict[str, int]:
        """For a card or a log: texts that stayed, and bands that were full (some of their pairs may be missed)."""
        num, rows, _ = self.bands
        return {"texts": len(self._keys), "bands": num, "rows": rows, "full": self._index.num_full}
