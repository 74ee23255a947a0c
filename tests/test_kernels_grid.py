"""Every backend and instruction set against float64, on a grid: log-prob, entropy and gradients (F16)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from kernel_grid import (
    FLOATS,
    INSTRUCTIONS,
    NATIVE,
    WAYS,
    assert_gradient,
    assert_near,
    computed,
    exact,
    gradients,
    kept,
    normal,
    picks,
)
from torch import Tensor

from rl_think_ext.kernels import linear_masked_logprob, logprob_partials, masked_logprob

SHAPES = (
    (1, 1),  # a vocabulary of one: log-prob and entropy are 0
    (3, 2),  # one pair of scalar lanes and nothing else
    (5, 15),  # all tail: one under a pair of 8 lanes
    (4, 33),  # one over a pair of 16 lanes
    (3, 65),  # whole pairs for every instruction set, and one
    (2, 2049),  # one over the block of 64 pairs of 16 lanes
    (7, 1031),  # a prime: no row begins where the last one did
    (2, 3, 130),  # two leading dimensions
    (2, 32_769),  # one over a segment, which is what two threads share
)
DENSITIES = (1, 0.5, 0.05, 0)
NUMBERS = ((1.0, None), (0.7, None), (2.0, 5.0), (1.0, 30.0))


def settings(shape: tuple[int, ...]) -> list[tuple[float, tuple[float, float | None]]]:
    """Densities with temperatures and caps: all of them, or each once where the tensor is large."""
    return list(
        itertools.product(DENSITIES, NUMBERS) if math.prod(shape) < 5_000 else zip(DENSITIES, NUMBERS, strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_f16_log_prob_and_entropy(way: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    logits, labels = normal(*shape, dtype=dtype, scale=3.0), picks(shape[-1], *shape[:-1])
    with computed(way) as backend:
        for density, (temperature, softcap) in settings(shape):
            mask = kept(shape[:-1], density)
            numbers: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "backend": backend}
            expected, expected_entropy = exact(logits, labels, mask, temperature, softcap)
            got, entropy = masked_logprob(logits, labels, mask, entropy=True, **numbers)
            assert_near(got, expected, 5e-7)
            assert_near(entropy, expected_entropy, 3e-6)
            assert torch.equal(masked_logprob(logits, labels, mask, **numbers), got)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_f16_gradient(way: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    logits, labels = normal(*shape, dtype=dtype, scale=3.0), picks(shape[-1], *shape[:-1])
    weights = normal(*shape[:-1], seed=1)
    with computed(way) as backend:
        for density, (temperature, softcap) in settings(shape):
            mask = kept(shape[:-1], density)
            numbers: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "backend": backend}
            (expected,) = gradients(
                lambda x, m=mask, t=temperature, c=softcap: exact(x, labels, m, t, c), logits.double(), weights=weights
            )
            assert expected is not None

            def run(x: Tensor, m: Tensor | None = mask, n: dict[str, Any] = numbers, **place: Any) -> Any:
                return masked_logprob(x, labels, m, **n, **place)

            (got,) = gradients(run, logits, weights=weights)
            assert got is not None and got.dtype == dtype
            # A probability near 1 has no digits below 2^-24: 1 - p is off by that, however small it is.
            rounding = float((weights if mask is None else weights[mask]).norm()) / temperature * 2**-23
            assert_gradient(got, expected, dtype, rounding=rounding)
            if mask is not None:
                assert not got[~mask].any()
            places: list[dict[str, Any]] = [
                {"inplace_backward": True},
                {"backward_out": torch.full_like(logits, torch.nan)},
            ]
            for place in places:
                (again,) = gradients(lambda x, p=place, f=run: f(x * 1, **p), logits, weights=weights)
                assert again is not None and torch.equal(again, got), place


@pytest.mark.parametrize("way", [way for way in WAYS if way != "torch"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_f16_kernel_hazard_3_a_gradient_that_is_streamed_past_the_caches(way: str, dtype: torch.dtype) -> None:
    # Above 8 MB; rows of an odd length begin at every alignment.
    shape = (43, 151_937 // (2 if dtype == torch.float32 else 1))
    logits, labels, mask = normal(*shape, dtype=dtype, scale=3.0), picks(shape[-1], shape[0]), kept((43,), 0.9)
    with computed(way) as backend:
        (expected,) = gradients(lambda x: exact(x, labels, mask, 0.7), logits.double())
        (got,) = gradients(lambda x: masked_logprob(x, labels, mask, temperature=0.7, backend=backend), logits)
    assert expected is not None
    assert_gradient(got, expected, dtype)


LINEAR = (
    # rows, depth, vocabulary
    (1, 1, 1),  # depth 1: half a pair of bf16
    (3, 5, 7),  # an odd depth: the last pair of bf16 is half empty; a narrow panel; less than a tile
    (17, 64, 29),  # one row over a narrow panel; one column over two tiles of 14
    (33, 33, 131),  # one row over a whole panel of 32
    (65, 7, 2_000),  # a third panel, two spans of 128 tiles of 14, four slabs of 36
    (515, 6, 610),  # a second block of rows with a narrow panel
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_f16_from_hidden_states(way: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, depth, vocab = shape
    leaves = [normal(rows, depth, dtype=dtype), normal(vocab, depth, dtype=dtype, scale=depth**-0.5, seed=1)]
    leaves.append(normal(vocab, dtype=dtype, seed=2))
    labels, weights = picks(vocab, rows), normal(rows, seed=3)
    cases = [(1, 1.0, None, True), (0.5, 0.7, None, False), (0.05, 2.0, 5.0, True), (0, 1.0, None, True)]
    with computed(way) as backend:
        for density, temperature, softcap, with_bias in cases:
            mask = kept((rows,), density)

            def expected_of(h: Tensor, w: Tensor, *b: Tensor, k: Any = (mask, temperature, softcap)) -> Any:
                return exact(h @ w.t() + (b[0] if b else 0.0), labels, *k)

            def run(h: Tensor, w: Tensor, *b: Tensor, k: Any = (mask, temperature, softcap)) -> Any:
                numbers: dict[str, Any] = {"temperature": k[1], "softcap": k[2], "entropy": True, "backend": backend}
                return linear_masked_logprob(h, w, labels, k[0], bias=b[0] if b else None, **numbers)

            given = leaves if with_bias else leaves[:2]
            wide = [x.double() for x in given]
            for got, expected, tolerance in zip(run(*given), expected_of(*wide), (3e-6, 1e-5), strict=True):
                assert_near(got, expected, tolerance)
            both = gradients(run, *given, weights=weights), gradients(expected_of, *wide, weights=weights)
            for got_one, expected_one in zip(*both, strict=True):
                assert expected_one is not None
                assert_gradient(got_one, expected_one, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_f16_sums_over_many_rows_and_a_long_depth(way: str) -> None:
    # float32 sums of thousands of terms, one after the other, would lose 1e-6 and more.
    hidden, weight, labels = normal(3_001, 130), normal(150, 130, scale=0.1), picks(150, 3_001)
    wide = normal(9, 4_097), normal(70, 4_097, scale=0.02)
    with computed(way) as backend:
        for h, w, y in ((hidden, weight, labels), (*wide, picks(70, 9))):
            got = gradients(lambda a, b, y=y: linear_masked_logprob(a, b, y, backend=backend), h, w)
            expected = gradients(lambda a, b, y=y: exact(a @ b.t(), y), h.double(), w.double())
            for got_one, expected_one in zip(got, expected, strict=True):
                assert expected_one is not None
                assert_gradient(got_one, expected_one, torch.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kernel_hazard_5_offsets_of_5000(way: str, dtype: torch.dtype) -> None:
    logits, labels = normal(5, 1_031, scale=3.0), picks(1_031, 5)
    with computed(way) as backend:
        for offset in (-5_000.0, 5_000.0):
            moved = (logits + offset).to(dtype)
            expected, expected_entropy = exact(moved, labels)
            got, entropy = masked_logprob(moved, labels, entropy=True, backend=backend)
            assert_near(got, expected, 5e-7)
            assert_near(entropy, expected_entropy, 3e-6)
            (wanted,) = gradients(lambda x: exact(x, labels), moved.double())
            (found,) = gradients(lambda x: masked_logprob(x, labels, backend=backend), moved)
            assert wanted is not None
            assert_gradient(found, wanted, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_rises_all_along_is_rescaled_again_and_again(way: str) -> None:
    logits = torch.stack([torch.linspace(-400, 400, 9_001), torch.linspace(400, -400, 9_001)])
    labels = torch.tensor([9_000, 8_000])
    with computed(way) as backend:
        expected, expected_entropy = exact(logits, labels)
        got, entropy = masked_logprob(logits, labels, entropy=True, backend=backend)
    assert_near(got, expected, 5e-7)
    assert_near(entropy, expected_entropy, 3e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_partials_of_shards_are_the_whole(way: str, dtype: torch.dtype) -> None:
    logits, labels, mask = normal(6, 300, dtype=dtype, scale=3.0), picks(300, 6), kept((6,), 0.6)
    logits[1, :100] = -torch.inf  # a rank that knows nothing of the row
    with computed(way) as backend:
        for temperature, softcap in NUMBERS:
            edges = [0, 100, 101, 300]
            shards = [
                logprob_partials(
                    logits[:, a:b], labels, mask, first=a, temperature=temperature, softcap=softcap, backend=backend
                )
                for a, b in itertools.pairwise(edges)
            ]
            highest = torch.stack([shard.max for shard in shards]).amax(0)
            total = torch.stack([s.sum * ((s.max - highest) / temperature).exp() for s in shards]).sum(0)
            label = torch.stack([shard.label for shard in shards]).sum(0)
            merged = label - highest / temperature - total.log()
            expected, _ = exact(logits, labels, mask, temperature, softcap)
            assert_near(merged if mask is None else merged.where(mask, 0.0), expected, 2e-6)


def test_an_instruction_set_that_is_chosen_computes() -> None:
    assert INSTRUCTIONS[-1] == "scalar"
    logits, labels = normal(4, 1_031, scale=3.0), picks(1_031, 4)
    found = {}
    for name in INSTRUCTIONS:
        with computed(f"cpp-{name}"):
            assert NATIVE.isa() == name
            found[name] = tuple(masked_logprob(logits, labels, entropy=True)[1].tolist())
    # Other sums: without a difference one would have computed for all.
    assert len(set(found.values())) >= min(2, len(INSTRUCTIONS))
    assert not NATIVE.use_isa("neon")


@pytest.mark.parametrize("way", WAYS)
def test_f16_many_small_tiles_beside_a_large_sum(way: str) -> None:
    # A tile of 14 columns adds 4e-8 to a sum of 1: less than half a unit in its last place.
    vocab = 128 * 14
    bias, labels = torch.full((vocab,), -19.6), torch.tensor([0])
    bias[0] = 0.0
    expected, _ = exact(bias[None], labels)
    with computed(way) as backend:
        got = linear_masked_logprob(torch.zeros(1, 4), torch.zeros(vocab, 4), labels, bias=bias, backend=backend)
    assert isinstance(got, Tensor)
    assert abs(float(got - expected)) <= 3e-7
