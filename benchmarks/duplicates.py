"""How many planted near-duplicates are found, and at what cost: python benchmarks/duplicates.py [--out FOLDER]

Makes documents of 184 random words out of 50,000, hence 180 runs of five. To one in ten a copy is planted whose last
20 words are others, so that the Jaccard similarity of the pair is exactly 160/200 = 0.8, and to one in ten another one
with 45, 135/225 = 0.6. All come in a random order. Printed and written as JSON:

  found 0.8    share of the pairs at the threshold of which the later text is called a near-duplicate of the earlier
  taken 0.6    the same of the pairs at 0.6, where none should be
  precision    of all texts that are taken, the share that is a copy at 0.8: there are as many copies at 0.6
  false        texts that were called a near-duplicate and have no copy at all
  seconds      of one core: signatures (many processes can make them), index (one process, in the order)
  bytes        of memory per text that stays, by tracemalloc: the index, and the set of exact keys
  datasketch   the same signatures in datasketch's MinHashLSH with the same bands (--peer texts): seconds and bytes

One core, about two minutes for 100,000 documents.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import string
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_think_ext.data.near_duplicates import Exact, NearDuplicateConfig, NearDuplicates

NUM_WORDS, OTHERS = 184, {0.8: 20, 0.6: 45}
SHARE = 0.1  # of the documents that have a copy at each similarity


class Document(NamedTuple):
    """`similarity` is that to the document `of`, or 1.0 for an original."""

    of: int
    similarity: float


def vocabulary(seed: int = 0) -> list[str]:
    """50,000 words of 3 to 10 letters."""
    random_ = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < 50_000:
        words["".join(random_.choices(string.ascii_lowercase, k=random_.randint(3, 10)))] = None
    return list(words)


def plan(num_documents: int, seed: int = 0) -> list[Document]:
    """Originals and copies in a random order."""
    num_copies = round(SHARE * num_documents)
    num_originals = num_documents - len(OTHERS) * num_copies
    documents = [Document(i, 1.0) for i in range(num_originals)]
    starts = iter(range(num_originals))
    for similarity in OTHERS:
        documents += [Document(next(starts), similarity) for _ in range(num_copies)]
    random.Random(seed).shuffle(documents)
    return documents


def text_of(document: Document, words: Sequence[str]) -> str:
    """Its text, the same each time."""
    text = random.Random(f"original {document.of}").choices(words, k=NUM_WORDS)
    if num := OTHERS.get(document.similarity):
        text[-num:] = random.Random(f"copy {document.of} {document.similarity}").choices(words, k=num)
    return " ".join(text)


def signed(near: NearDuplicates, documents: Sequence[Document], words: Sequence[str]) -> tuple[list[bytes], float]:
    """The signatures, and the seconds that they alone took."""
    found, spent = [], 0.0
    for document in documents:
        text = text_of(document, words)
        start = time.process_time()
        found.append(near.signature(text))
        spent += time.process_time() - start
    return found, spent


def judged(documents: Sequence[Document], earlier: Sequence[int | None]) -> dict[str, float]:
    """Shares of the pairs that were found."""
    place = {}
    for number, document in enumerate(documents):
        place.setdefault(document.of, []).append(number)
    result: dict[str, float] = {}
    paired = set()
    for similarity in OTHERS:
        pairs = [place[d.of] for d in documents if d.similarity == similarity]
        paired |= {number for pair in pairs for number in pair}
        hits = sum(earlier[later] == first for first, later in pairs)
        result[f"{'found' if similarity == 0.8 else 'taken'} {similarity}"] = hits / len(pairs)
    taken = sum(given is not None for given in earlier)
    right = sum(d.similarity == 0.8 for d in documents) * result["found 0.8"]
    false = sum(given is not None for n, given in enumerate(earlier) if n not in paired)
    return {**result, "precision": right / max(taken, 1), "false": false}


def measured(work: Callable[[], Any]) -> tuple[Any, int]:
    """What a function gives, and the bytes that stay allocated behind it."""
    tracemalloc.start()
    try:
        made = work()
        return made, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def index_of(config: NearDuplicateConfig, signatures: Sequence[bytes]) -> tuple[NearDuplicates, list[int | None]]:
    """An index that was given all signatures, and what it said of each."""
    near = NearDuplicates(config)
    return near, [near.add(number, signature) for number, signature in enumerate(signatures)]


def peer(config: NearDuplicateConfig, signatures: Sequence[bytes]) -> dict[str, float]:
    """datasketch's index with the same signatures and bands."""
    from datasketch import LeanMinHash, MinHashLSH

    num, rows, num_perm = config.bands()
    minima = [np.frombuffer(signature[: 4 * num_perm], dtype="<u4") for signature in signatures]

    def fill() -> MinHashLSH:
        lsh = MinHashLSH(num_perm=num_perm, params=(num, rows))
        for number, values in enumerate(minima):
            sketch = LeanMinHash(seed=config.seed, hashvalues=values, scheme="affine32")
            if not lsh.query(sketch):
                lsh.insert(number, sketch)
        return lsh

    start = time.process_time()
    fill()
    seconds = time.process_time() - start
    lsh, size = measured(fill)
    return {"texts": len(minima), "seconds": seconds, "bytes": size / max(len(lsh.keys), 1)}


def run(num_documents: int, config: NearDuplicateConfig, num_peer: int) -> dict[str, Any]:
    """All of it."""
    documents, words = plan(num_documents), vocabulary()
    signatures, seconds_signing = signed(NearDuplicates(config), documents, words)
    start = time.process_time()
    near, earlier = index_of(config, signatures)
    seconds_index = time.process_time() - start
    facts = near.facts()
    del near
    _, size = measured(lambda: index_of(config, signatures)[0])
    texts = [text_of(document, words) for document in documents[:10_000]]
    exact, exact_size = measured(lambda: (seen := Exact(), [seen(text) for text in texts])[0])
    del exact
    return {
        "documents": num_documents,
        "settings": {name: getattr(config, name) for name in ("threshold", "recall", "num_perm", "ngram", "verify")},
        "index": facts,
        **judged(documents, earlier),
        "seconds": {"signatures": seconds_signing, "index": seconds_index},
        "bytes": {"index": size / facts["texts"], "exact": exact_size / len(texts)},
        "datasketch": peer(config, signatures[:num_peer]) if num_peer else None,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("datasketch", "numpy")} | {"python": platform.python_version()},
    }


def main() -> None:
    """Read the flags, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--peer", type=int, default=10_000, help="texts for datasketch's index; 0: none")
    parser.add_argument("--num-perm", type=int, default=NearDuplicateConfig.num_perm)
    parser.add_argument("--verify", action="store_true", help="compare the true sets")
    parser.add_argument("--out", type=Path, help="a folder for duplicates.json")
    given = parser.parse_args()
    result = run(given.documents, NearDuplicateConfig(num_perm=given.num_perm, verify=given.verify), given.peer)
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "duplicates.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
