"""Texts that were there before: bands by hand and by brute force, planted pairs, clusters, memory, hostile text."""

from __future__ import annotations

import json
import math
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_think_ext.data import band_index, prompts
from rl_think_ext.data.band_index import BandIndex
from rl_think_ext.data.near_duplicates import Bands, Exact, NearDuplicateConfig, NearDuplicates, bands
from rl_think_ext.data.words import gram_hashes, grams_of, normalised, word_hashes, words
from rl_think_ext.errors import UserError

BENCHMARK = Path(__file__).parents[1] / "benchmarks/duplicates.py"


def random_text(seed: int, num_words: int = 184, vocabulary: int = 50_000) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(vocabulary)}" for _ in range(num_words)]


def changed(text: list[str], num: int) -> list[str]:
    """The last words are others: of 180 runs of five, num are, so that J = (180 - num) / (180 + num)."""
    return text[:-num] + [f"other{i}{text[0]}" for i in range(num)]


def jaccard(near: NearDuplicates, first: str, second: str) -> float:
    one, two = (set(near.shingles(text).tolist()) for text in (first, second))
    return len(one & two) / len(one | two)


# --- bands ---


def test_bands_by_hand() -> None:
    # 0.8^7 = 0.2097: 13 bands give 1 - 0.7903^13 = 0.953, 12 give 0.941; 8 rows would need 17 x 8 = 136 permutations.
    assert bands(128, 0.8, 0.95) == Bands(13, 7, 91)
    assert bands(136, 0.8, 0.95) == Bands(17, 8, 136)
    # 1 - 0.5^b >= 0.9 with one row: four bands; with two rows 1 - 0.75^8 = 0.8999 is not enough, nine are.
    assert bands(17, 0.5, 0.9) == Bands(4, 1, 4)
    assert bands(18, 0.5, 0.9) == Bands(9, 2, 18)
    assert bands(128, 1.0, 0.95) == Bands(1, 128, 128)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0.05, 0.99), st.floats(0.05, 0.999))
def test_bands_are_those_of_brute_force(num_perm: int, threshold: float, recall: float) -> None:
    good = [
        (r, -b)
        for r in range(1, num_perm + 1)
        for b in range(1, num_perm // r + 1)
        if 1.0 - (1.0 - threshold**r) ** b >= recall
    ]
    if not good:
        with pytest.raises(UserError, match="raise `num_perm`"):
            bands(num_perm, threshold, recall)
        return
    rows, num = max(good)
    assert bands(num_perm, threshold, recall) == Bands(-num, rows, -num * rows)


@pytest.mark.parametrize(
    "wrong",
    [{"num_perm": 0}, {"threshold": 0.0}, {"threshold": 1.1}, {"recall": 1.0}, {"recall": 0.0}, {"ngram": 0}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        NearDuplicateConfig(**wrong)  # type: ignore[arg-type]


def test_the_cut_of_the_estimate_keeps_the_root_of_the_recall() -> None:
    config = NearDuplicateConfig()
    # Not those of 0.95, 13 x 7: what the bands let through, the estimate takes from once more.
    assert config.bands() == bands(128, 0.8, math.sqrt(0.95)) == Bands(16, 7, 112)
    assert NearDuplicateConfig(verify=True).bands() == Bands(13, 7, 91)
    num, least = config.bands().num_perm, config.least_equal()
    tail = [sum(math.comb(num, k) * 0.8**k * 0.2 ** (num - k) for k in range(n, num + 1)) for n in (least, least + 1)]
    assert tail[0] >= math.sqrt(0.95) > tail[1]
    assert NearDuplicateConfig(threshold=1.0).least_equal() == NearDuplicateConfig(threshold=1.0).bands().num_perm
    many = NearDuplicateConfig(num_perm=5000)
    assert 0.77 < many.least_equal() / many.bands().num_perm < 0.8
    # Left to the bands alone, more than a third of the pairs at 0.6 would be taken.
    assert 1 - (1 - 0.6**7) ** 16 > 0.35


# --- exact ---


def test_exact_duplicates_differ_in_form_alone() -> None:
    seen = Exact()
    first = "Ｈe said:  ﬁne.\r\nStraße Ⅷ"
    assert not seen(first)
    assert seen("he said: fine. STRASSE viii ")
    assert not seen("he said fine. STRASSE viii")
    assert len(Exact.key(first)) == 16
    assert Exact.key(first) == Exact.key("he said: fine. strasse viii")


# --- words ---


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words("水壶在桌子上。") == list("水壶在桌子上")
    assert words("ที่นี่") == list("ที่นี่")
    assert words("हिन्दी भाषा।") == ["हिन्दी", "भाषा"]
    assert words("Naïve café—x_1") == ["naïve", "café", "x", "1"]
    near = NearDuplicates()
    sentence = "春天来了，花儿在院子里慢慢地开放，孩子们跑出去玩耍，直到太阳落山才回家吃饭。"
    assert near.add(0, near.signature(sentence * 1)) is None
    assert near.add(1, near.signature(sentence.replace("。", "！"))) == 0
    assert near.add(2, near.signature("秋天到了，树叶变黄，农民在田里忙着收割庄稼，天气一天比一天凉。")) is None


def test_runs_of_words_are_hashed_by_their_order() -> None:
    hashes = word_hashes("a b, a: B")
    two = gram_hashes(hashes, 2)
    assert two[0] == two[2] != two[1]
    assert gram_hashes(hashes, 5).size == 0
    for n, grams in zip((1, 3, 6), grams_of(hashes, (1, 3, 6)), strict=True):
        assert grams.tolist() == gram_hashes(hashes, n).tolist()


@pytest.mark.parametrize(
    "unit", ["a\u0300\u0316", "\u0300\u0316", "\u0f73\u0f73", "\ufdfa", "\ud800", "a\u0000", "\u202e", "가"]
)
def test_hostile_characters_take_linear_time(unit: str) -> None:
    """F29: to sort a run of combining marks costs the square of its length."""
    text = unit[0] + unit[1:] * 30_000
    start = time.process_time()
    normalised(text)
    NearDuplicates().signature(text)
    Exact.key(text)
    assert time.process_time() - start < 4


@given(st.text(max_size=40))
def test_normalised_as_prompts_are(text: str) -> None:
    assert normalised(text) == prompts.normalised(text)
    assert normalised("e\u0301\u0323") == "ẹ\u0301"


# --- near-duplicates ---


def test_exercises_that_differ_in_a_sign_are_not_the_same() -> None:
    groups = [
        ["What is 2 + 3?", "What is 2 - 3?", "What is 2*3?", "What is 2 / 3?"],
        ["Solve x^2 - 5x + 6 = 0.", "Solve x^2 + 5x - 6 = 0.", "Solve x^2 + 5x - 6 < 0."],
    ]
    for texts in groups:
        near = NearDuplicates()
        assert [near.add(text, near.signature(text)) for text in texts] == [None] * len(texts)
        assert near.add("copy", near.signature(f"  {texts[0].upper()}")) == texts[0]
    near = NearDuplicates()
    assert near.add("a", near.signature("A well known thing, and more.")) is None
    assert near.add("b", near.signature("A *well-known* thing and/more")) == "a"


def test_the_first_stays_and_its_key_is_given() -> None:
    near = NearDuplicates()
    text = random_text(0)
    texts = {"a": text, "b": random_text(1), "c": [*text, "end"], "d": ["start", *text], "e": text[::-1]}
    found = {key: near.add(key, near.signature(" ".join(value))) for key, value in texts.items()}
    assert found == {"a": None, "b": None, "c": "a", "d": "a", "e": None}
    assert near.facts()["texts"] == 3


def test_what_was_taken_takes_nothing_with_it() -> None:
    """Near a text that went, and not near the one that stayed: it stays too."""
    near = NearDuplicates(NearDuplicateConfig(verify=True, num_perm=256))
    first = random_text(2)
    second = changed(first, 18)
    third = [f"new{i}" for i in range(18)] + second[18:]
    assert jaccard(near, " ".join(second), " ".join(third)) > 0.8
    assert near.add(0, near.signature(" ".join(first))) is None
    assert near.add(1, near.signature(" ".join(second))) == 0
    assert jaccard(near, " ".join(first), " ".join(third)) < 0.7
    assert near.add(2, near.signature(" ".join(third))) is None


def test_short_texts_and_texts_without_words() -> None:
    near = NearDuplicates()
    assert near.signature("") == near.signature(" ... !\n") == b""
    assert near.add(0, b"") is None
    assert near.add(1, b"") is None
    assert near.add(2, near.signature("Two words")) is None
    assert near.add(3, near.signature("two, words!")) == 2
    assert near.add(4, near.signature("words two")) is None


@pytest.mark.parametrize("verify", [False, True])
def test_planted_pairs_at_known_similarity(verify: bool) -> None:
    """2,000 documents: recall at 0.8 as wanted (three standard errors), hardly any at 0.6, none of the others."""
    near = NearDuplicates(NearDuplicateConfig(verify=verify))
    found: Counter[float] = Counter()
    for i in range(1000):
        text, similarity, num = random_text(i), *((0.8, 20) if i % 2 else (0.6, 45))
        copy = changed(text, num)
        if i < 2:
            assert jaccard(near, " ".join(text), " ".join(copy)) == pytest.approx(similarity)
        assert near.add(2 * i, near.signature(" ".join(text))) is None
        earlier = near.add(2 * i + 1, near.signature(" ".join(copy)))
        assert earlier in (None, 2 * i)
        found[similarity] += earlier is not None
    assert found[0.8] >= 500 * (0.95 - 3 * math.sqrt(0.95 * 0.05 / 500))
    assert found[0.6] <= (0 if verify else 10)


def test_signatures_are_those_of_datasketch_whatever_the_length() -> None:
    """A long text is taken in blocks: the minima are those of all at once."""
    from datasketch import MinHash

    near = NearDuplicates()
    text = " ".join(random_text(3, num_words=10_000))
    shingles = near.shingles(text)
    assert len(shingles) == 9_996
    whole = MinHash(num_perm=near.bands.num_perm, seed=1, hashfunc=int, scheme="affine32")
    whole.update_batch(shingles.tolist())
    assert near.signature(text) == whole.hashvalues.astype("<u4").tobytes()
    assert len(near.signature(text)) == 4 * near.bands.num_perm


def test_a_signature_is_the_same_in_another_process() -> None:
    near = NearDuplicates()
    near.add(0, near.signature("x y z"))
    copy = pickle.loads(pickle.dumps(near))  # noqa: S301
    assert copy.facts()["texts"] == 0
    code = (
        "from rl_think_ext.data.near_duplicates import *;"
        "print(NearDuplicates().signature('The same text, ünd more of it.').hex(), Exact.key('ab').hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = "The same text, ünd more of it."
    assert done.stdout.split() == [copy.signature(text).hex(), Exact.key("ab").hex()]


def test_signatures_of_other_settings_are_refused() -> None:
    near, other = NearDuplicates(), NearDuplicates(NearDuplicateConfig(num_perm=64))
    sure = NearDuplicates(NearDuplicateConfig(verify=True, num_perm=128))
    for one, two in ((near, other), (other, near), (near, sure)):
        with pytest.raises(ValueError, match="other settings"):
            one.add(0, two.signature("five words are enough here"))


def test_seeds_give_other_permutations() -> None:
    text = "five words are enough here, as it seems"
    assert NearDuplicates().signature(text) != NearDuplicates(NearDuplicateConfig(seed=2)).signature(text)


# --- the table ---


def brute_force(stored: list[np.ndarray], asked: np.ndarray, shape: tuple[int, int]) -> list[int]:
    return [i for i, m in enumerate(stored) if (m.reshape(shape) == asked.reshape(shape)).all(axis=1).any()]


def test_the_table_finds_all_that_share_a_band() -> None:
    """Few values, so that bands are shared often; it grows several times on the way."""
    shape = (4, 3)
    index, stored = BandIndex(*shape), []
    draw = np.random.default_rng(0)
    for _ in range(1500):
        minima = draw.integers(0, 12, 12, dtype=np.uint32)
        found = index.find(minima)
        if len(stored) % 7 == 0:
            assert found.numbers.tolist() == brute_force(stored, minima, shape)
        index.insert(minima, found.slots)
        stored.append(minima)
    assert index.num_full == 0
    assert len(index) == 1500
    assert (index.minima(np.array([5, 1499])) == np.array([stored[5], stored[1499]])).all()


def test_a_full_bucket_stops_growing_and_is_counted() -> None:
    """Boilerplate: thousands of texts share a band, and each is compared with the first of them alone."""
    index = BandIndex(2, 2)
    for i in range(800):
        minima = np.array([7, 7, i, i], dtype=np.uint32)
        found = index.find(minima)
        assert len(found.numbers) <= band_index.MAX_BUCKET
        index.insert(minima, found.slots)
    # A text whose two bands lie side by side is counted twice now and then.
    assert 800 - band_index.MAX_BUCKET <= index.num_full <= 800 - band_index.MAX_BUCKET + 8
    last = index.find(np.array([7, 7, 700, 700], dtype=np.uint32)).numbers.tolist()
    assert last[-1] == 700
    assert len(last) > band_index.MAX_BUCKET - 8


def test_boilerplate_takes_linear_time() -> None:
    near = NearDuplicates()
    shared = random_text(0, num_words=120)
    start = time.process_time()
    for i in range(1000):
        assert near.add(i, near.signature(" ".join([*shared, *(f"own{i}x{k}" for k in range(80))]))) is None
    assert time.process_time() - start < 30


@pytest.mark.slow
def test_the_benchmark_runs_and_keeps_its_promises(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--documents", "2000", "--peer", "500", "--out", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "duplicates.json").read_text())
    assert result["found 0.8"] >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)
    assert result["taken 0.6"] <= 0.03
    assert result["precision"] >= 0.97
    assert result["false"] == 0
    assert result["bytes"]["index"] < 900 < result["datasketch"]["bytes"]
    assert result["bytes"]["exact"] < 150
    assert result["index"]["texts"] == pytest.approx(1800, abs=20)
