"""Equal inputs are scored once, also across calls: one score for identical token sequences (F8, F47)."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from rl_think_ext.records import Score

Ids = tuple[int, ...]


class ScoreCache:
    """The last `size` scores by token ids; 0 only joins the equal inputs of one call.

    Kept under a digest of 16 bytes, for an answer's ids would take 30 kB of Python integers. What could not be scored
    is never kept: the next call asks anew. `num_asked` and `num_cached` are the inputs of the last call that were
    computed, and those that were not because their score was known before the call.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"a cache holds 0 or more scores, got {size}")
        self.size = size
        self.num_asked = self.num_cached = 0
        self._scores: OrderedDict[bytes, Score] = OrderedDict()

    def ask(self, keys: Sequence[Ids], compute: Callable[[list[Ids]], list[Score]]) -> list[Score]:
        """One score for each key, in order; `compute` gets the unknown ones, each once, and answers in their order.

        Raises:
            ValueError: `compute` gave another number of scores.
        """
        digests = [_digest(key) for key in keys]
        first = dict(zip(reversed(digests), reversed(keys), strict=True))
        known = {digest: self._scores[digest] for digest in first if digest in self._scores}
        unknown = [digest for digest in dict.fromkeys(digests) if digest not in known]
        scores = compute([first[digest] for digest in unknown]) if unknown else []
        if len(scores) != len(unknown):
            raise ValueError(f"{len(unknown)} inputs were given {len(scores)} scores")
        found = known | dict(zip(unknown, scores, strict=True))
        self.num_asked = len(unknown)
        self.num_cached = sum(digest in known for digest in digests)
        self._keep(found)
        return [found[digest] for digest in digests]

    def _keep(self, found: dict[bytes, Score]) -> None:
        for digest, score in found.items():
            if score.value is not None:
                self._scores[digest] = score
                self._scores.move_to_end(digest)
        while len(self._scores) > self.size:
            self._scores.popitem(last=False)


def _digest(key: Ids) -> bytes:
    return blake2b(array("q", key), digest_size=16).digest()
