"""Words as the text filters compare them: a normalised text, its words, and hashes of runs of words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rl_think_ext.data import prompts
from rl_think_ext.template import INVISIBLE, with_short_runs

Hashes = npt.NDArray[np.uint64]

# Scripts that put no space between words (Han, kana, Thai, Lao, Tibetan, Burmese, Khmer): each character counts.
_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Vowel signs and the like, which Python's \w leaves out: without them a word of Hindi falls into its consonants.
_SIGNS = "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u0670\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(f"[{_SPACELESS}]|(?:[^\\W_{_SPACELESS}]|[{_SIGNS}])+")
_ASCII_WORD = re.compile(b"[a-z0-9]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normalised(text: str) -> str:
    """A text without what differs between copies of it: Unicode's form (NFKC), case, white space.

    Takes time linear in the text: of a run of combining marks no more than 30 are kept, because to sort a run costs
    the square of its length (F29).

    >>> normalised("Ｗrite  a\\nPOEM ")
    'write a poem'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    return prompts.normalised(with_short_runs(text))


def words(text: str) -> list[str]:
    """The words of a text, normalised and without punctuation; single characters in scripts without spaces.

    Characters that are not seen part no words: soft hyphens and blanks of no width come with text out of PDF files.

    >>> words("The TEA-pot\\u2019s x^2, 水壶")
    ['the', 'tea', 'pot', 's', 'x', '2', '水', '壶']
    """
    return [word.decode("utf-8", "surrogatepass") for word in _encoded(text)]


def word_hashes(text: str) -> Hashes:
    """[W] hashes of the W words of a text, the same in every process."""
    return np.array(list(map(zlib.crc32, _encoded(text))), dtype=np.uint64)


def _encoded(text: str) -> list[bytes]:
    if text.isascii():
        return _ASCII_WORD.findall(text.lower().encode())
    return [word.encode("utf-8", "surrogatepass") for word in _WORD.findall(normalised(INVISIBLE.sub("", text)))]


def gram_hashes(hashes: Hashes, n: int) -> Hashes:
    """[W - n + 1] hashes of all runs of n words, in order; none where there are fewer than n."""
    return next(grams_of(hashes, (n,)))


def grams_of(hashes: Hashes, lengths: Sequence[int]) -> Iterator[Hashes]:
    """gram_hashes for each of several ascending lengths, each made from the one before."""
    grams = np.zeros(len(hashes), dtype=np.uint64)
    done = 0
    for n in lengths:
        for start in range(done, n):
            num = max(len(hashes) - start, 0)
            grams = grams[:num] * _MULTIPLIER + hashes[start : start + num]
        done = n
        yield _mixed(grams)


def _mixed(hashes: Hashes) -> Hashes:
    """The finalizer of MurmurHash3: afterwards every bit depends on all of them."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return hashes ^ (hashes >> np.uint64(33))
