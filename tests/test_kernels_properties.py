"""What holds for any logits: properties of softmax that need no reference (F16)."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_grid import FLOATS, WAYS, computed, normal, picks
from torch import Tensor

from rl_think_ext.kernels import linear_masked_logprob, logprob_partials, masked_logprob

any_way = pytest.mark.parametrize("way", WAYS)
few = settings(max_examples=25, deadline=None, derandomize=True)
rows_of = st.integers(1, 5)
columns_of = st.integers(1, 90)
seeds = st.integers(0, 10**6)
temperatures = st.floats(0.25, 4.0)
caps = st.one_of(st.none(), st.floats(0.5, 50.0))


def table(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return normal(rows, columns, scale=4.0, seed=seed, dtype=dtype), picks(columns, rows, seed=seed)


def logprob(way: str, *args: Any, **kwargs: Any) -> Tensor:
    with computed(way) as backend:
        out = masked_logprob(*args, backend=backend, **kwargs)
    assert isinstance(out, Tensor)
    return out.double()


def near(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@any_way
@few
@given(rows=rows_of, columns=columns_of, seed=seeds, shift=st.integers(-4_000, 4_000), temperature=temperatures)
def test_a_shift_changes_nothing(way: str, rows: int, columns: int, seed: int, shift: int, temperature: float) -> None:
    logits, labels = table(rows, columns, seed)
    logits = (logits * 64).round() / 64  # exact at any of these offsets
    kwargs = {"temperature": 1.0 if way == "torch" else temperature}  # torch divides before the maximum is taken off
    near(logprob(way, logits + shift, labels, **kwargs), logprob(way, logits, labels, **kwargs))


@any_way
@few
@given(columns=columns_of, seed=seeds, temperature=temperatures, cap=caps, dtype=st.sampled_from(FLOATS))
def test_probabilities_sum_to_one(
    way: str, columns: int, seed: int, temperature: float, cap: float | None, dtype: torch.dtype
) -> None:
    row, _ = table(1, columns, seed, dtype)
    every = logprob(way, row.expand(columns, columns), torch.arange(columns), temperature=temperature, softcap=cap)
    near(every.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (every <= 0).all()


@any_way
@few
@given(rows=rows_of, columns=columns_of, seed=seeds)
def test_the_order_of_the_columns_is_nothing(way: str, rows: int, columns: int, seed: int) -> None:
    logits, labels = table(rows, columns, seed)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    near(logprob(way, logits[:, order], order.argsort()[labels]), logprob(way, logits, labels))


@any_way
@few
@given(rows=rows_of, columns=st.integers(2, 90), seed=seeds, step=st.floats(0.125, 8.0), cap=caps)
def test_a_higher_logit_is_likelier(
    way: str, rows: int, columns: int, seed: int, step: float, cap: float | None
) -> None:
    logits, labels = table(rows, columns, seed)
    higher = logits.scatter_add(1, labels[:, None], torch.full((rows, 1), step))
    assert (logprob(way, higher, labels, softcap=cap) >= logprob(way, logits, labels, softcap=cap) - 2e-6).all()


@any_way
@few
@given(rows=rows_of, columns=columns_of, seed=seeds, power=st.integers(-3, 3), cap=caps)
def test_temperature_is_a_division_and_the_cap_bounds(
    way: str, rows: int, columns: int, seed: int, power: int, cap: float | None
) -> None:
    logits, labels = table(rows, columns, seed)
    near(logprob(way, logits, labels, temperature=2.0**power), logprob(way, logits / 2.0**power, labels))
    if cap is not None:
        # Two logits of a row differ by less than twice the cap.
        far = logits * 1e6
        lowest = -2 * cap - torch.tensor(columns).log()
        assert (logprob(way, far, labels, softcap=cap) >= lowest - 1e-4 * (1 + cap)).all()


@any_way
@few
@given(rows=rows_of, columns=columns_of, seed=seeds, temperature=temperatures, cap=caps, data=st.data())
def test_partials_of_any_split_are_the_whole(
    way: str, rows: int, columns: int, seed: int, temperature: float, cap: float | None, data: Any
) -> None:
    logits, labels = table(rows, columns, seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, columns), max_size=4)) | {0, columns})
    if cap is None and len(cuts) > 2 and not (labels < cuts[1]).any():
        logits[:, : cuts[1]] = -torch.inf  # a rank that knows nothing
    with computed(way) as backend:
        numbers: dict[str, Any] = {"temperature": temperature, "softcap": cap, "backend": backend}
        shards = [logprob_partials(logits[:, a:b], labels, first=a, **numbers) for a, b in itertools.pairwise(cuts)]
    highest = torch.stack([shard.max for shard in shards]).amax(0)
    total = torch.stack([shard.sum * ((shard.max - highest) / temperature).exp() for shard in shards]).sum(0)
    merged = torch.stack([shard.label for shard in shards]).sum(0) - highest / temperature - total.log()
    near(merged.double(), logprob(way, logits, labels, temperature=temperature, softcap=cap), 2e-5)


@any_way
@few
@given(rows=rows_of, columns=columns_of, depth=st.integers(1, 20), seed=seeds, dtype=st.sampled_from(FLOATS), cap=caps)
def test_hidden_states_and_logits_agree(
    way: str, rows: int, columns: int, depth: int, seed: int, dtype: torch.dtype, cap: float | None
) -> None:
    hidden, weight = normal(rows, depth, seed=seed, dtype=dtype), normal(columns, depth, seed=seed + 1, dtype=dtype)
    labels = picks(columns, rows, seed=seed)
    with computed(way) as backend:
        got = linear_masked_logprob(hidden, weight, labels, softcap=cap, backend=backend)
    assert isinstance(got, Tensor)
    near(got.double(), logprob("torch", hidden.double() @ weight.double().t(), labels, softcap=cap), 5e-6)


@any_way
@few
@given(rows=rows_of, columns=columns_of, seed=seeds, keep=st.lists(st.booleans(), min_size=5, max_size=5))
def test_rows_are_a_mask(way: str, rows: int, columns: int, seed: int, keep: list[bool]) -> None:
    logits, labels = table(rows, columns, seed)
    mask = torch.tensor(keep[:rows])
    by_mask, by_rows = logprob(way, logits, labels, mask), logprob(way, logits, labels, rows=mask.nonzero()[:, 0])
    assert torch.equal(by_mask, by_rows)
    assert torch.equal(by_mask, logprob(way, logits, labels).where(mask, 0.0))


@few
@given(rows=rows_of, columns=columns_of, seed=seeds, temperature=temperatures, cap=caps, dtype=st.sampled_from(FLOATS))
def test_all_backends_agree(
    rows: int, columns: int, seed: int, temperature: float, cap: float | None, dtype: torch.dtype
) -> None:
    logits, labels = table(rows, columns, seed, dtype)
    found = [logprob(way, logits, labels, temperature=temperature, softcap=cap) for way in WAYS]
    for one in found[1:]:
        near(one, found[0])
