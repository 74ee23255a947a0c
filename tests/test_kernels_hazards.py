"""What a caller may get wrong, and what torch may hand over, given to the kernels (F16; kernels.md 1, 2, 5, 9, 11)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_grid import WAYS, assert_near, computed, exact, gradients, normal, picks

from rl_think_ext.kernels import available_backends, linear_masked_logprob, logprob_partials, masked_logprob

BACKENDS = available_backends()
NONE = -torch.inf
LEAF = torch.zeros(2, 5, requires_grad=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_f16_nan_and_infinities(way: str, dtype: torch.dtype) -> None:
    # In each place of a row, beside another and alone: first pair of lanes, whole pairs, tail.
    for vocab in (1, 3, 70, 5_000):
        clean, label = normal(1, vocab, dtype=dtype), torch.tensor([vocab // 2])
        for at in {0, vocab // 3, vocab - 1}:
            for bad in (torch.nan, torch.inf):
                row = clean.clone()
                row[0, at] = bad
                with computed(way) as backend:
                    logprob, entropy = masked_logprob(row, label, entropy=True, backend=backend)
                    (grad,) = gradients(lambda x, b=backend, y=label: masked_logprob(x, y, backend=b), row)
                assert logprob.isnan().all() and entropy.isnan().all(), (vocab, at, bad)
                assert grad is not None and grad.isnan().all(), (vocab, at, bad)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocab", [1, 5, 70, 40_000])
def test_f16_a_row_of_nothing_but_minus_infinity(way: str, vocab: int) -> None:
    logits, labels = torch.full((2, vocab), NONE), torch.zeros(2, dtype=torch.long)
    logits[1, -1] = 0.0
    with computed(way) as backend:
        got, entropy = masked_logprob(logits, labels, entropy=True, backend=backend)
        linear = linear_masked_logprob(torch.zeros(2, 1), torch.zeros(vocab, 1), labels, bias=logits[0])
    assert got.tolist() == [NONE, 0.0 if vocab == 1 else NONE]
    assert entropy[0].isnan() and entropy[1] < 1e-30
    assert linear.tolist() == [NONE, NONE]


@pytest.mark.parametrize("way", WAYS)
def test_f16_minus_infinity_among_others(way: str) -> None:
    logits, labels = normal(3, 3_000), torch.tensor([5, 6, 2_999])
    logits[0, :2_000] = logits[1, 7:] = logits[2, ::2] = NONE
    with computed(way) as backend:
        got, entropy = masked_logprob(logits, labels, entropy=True, backend=backend)
        (grad,) = gradients(lambda x: masked_logprob(x, labels, backend=backend), logits)
    expected, expected_entropy = exact(logits, labels)
    assert got[0] == NONE
    assert_near(got[1:], expected[1:], 5e-7)
    assert_near(entropy, expected_entropy, 3e-6)
    assert grad is not None and grad.isfinite().all()
    ruled_out = logits == NONE
    ruled_out[0, 5] = False  # the label itself pulls
    assert not grad[ruled_out].any() and grad[0, 5] == 1


@pytest.mark.parametrize("way", WAYS)
def test_f16_the_lowest_float_is_a_number(way: str) -> None:
    logits = torch.full((2, 700), torch.finfo(torch.float32).min)
    logits[1, 3] = 0.0
    labels = torch.tensor([5, 3])
    with computed(way) as backend:
        got = masked_logprob(logits, labels, backend=backend)
        from_hidden = [
            linear_masked_logprob(
                torch.zeros(1, 1), torch.zeros(700, 1), labels[i : i + 1], bias=logits[i], backend=backend
            )
            for i in range(2)
        ]
    for one in (got, torch.cat(from_hidden)):  # type: ignore[arg-type]
        assert_near(one, torch.tensor([-math.log(700), 0.0], dtype=torch.float64), 5e-7)


@pytest.mark.parametrize("way", WAYS)
def test_f16_a_capped_infinity_is_the_cap(way: str) -> None:
    logits = torch.tensor([[torch.inf, 0.0, 1.0], [NONE, NONE, NONE], [torch.nan, 0.0, 1.0], [3e38, -3e38, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    with computed(way) as backend:
        got = masked_logprob(logits, labels, softcap=3.0, backend=backend)
    expected, _ = exact(logits, labels, None, 1.0, 3.0)
    assert got[2].isnan()
    assert_near(got[[0, 1, 3]], expected[[0, 1, 3]], 5e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_poison_in_masked_rows_reaches_nothing(backend: str) -> None:
    logits, labels = normal(6, 40), picks(40, 6)
    mask = torch.tensor([True, False, True, True, False, False])
    poisoned, strange = logits.clone(), labels.clone()
    poisoned[~mask], strange[~mask] = torch.nan, torch.tensor([-100, 2**62, -(2**63)])
    (clean,) = gradients(lambda x: masked_logprob(x, labels, mask, backend=backend), logits)
    assert clean is not None
    for place in ({}, {"inplace_backward": True}, {"backward_out": torch.full_like(logits, torch.nan)}):
        for which in ({"mask": mask}, {"rows": mask.nonzero()[:, 0]}):
            run: dict[str, Any] = {**place, **which, "backend": backend}
            (got,) = gradients(lambda x, r=run: masked_logprob(x * 1, strange, **r), poisoned)
            assert got is not None and torch.equal(got, clean), run


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [[0, 2, 1], [1, 1], [-1], [4], [0, 2**62], [-(2**63)]], ids=str)
def test_f16_rows_out_of_order_or_range_are_named(backend: str, rows: list[int]) -> None:
    entry = {1: 0, 2: 1, 3: 2}[len(rows)]
    listed, labels = torch.tensor(rows), torch.zeros(4, dtype=torch.long)
    calls: list[Any] = [
        lambda: masked_logprob(torch.zeros(4, 3), labels, rows=listed, backend=backend),
        lambda: linear_masked_logprob(torch.zeros(4, 2), torch.zeros(3, 2), labels, rows=listed, backend=backend),
        lambda: logprob_partials(torch.zeros(4, 3), labels, rows=listed, backend=backend),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"^rows: entry {entry} is {rows[entry]}; they are numbers of the 4 rows"):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_an_empty_list_of_rows_is_none_of_them(backend: str) -> None:
    nothing, labels = torch.zeros(0, dtype=torch.long), torch.full((4,), -100)
    logits, weight = torch.full((4, 3), torch.nan), torch.zeros(3, 3)
    for call in (
        lambda x, **rest: masked_logprob(x, labels, rows=nothing, backend=backend, **rest),
        lambda x: linear_masked_logprob(x, weight, labels, rows=nothing, backend=backend),
        lambda x: masked_logprob(x * 1, labels, rows=nothing, backend=backend, inplace_backward=True),
    ):
        (grad,) = gradients(call, logits)
        assert call(logits).tolist() == [0.0] * 4
        assert grad is not None and not grad.any()
    assert not any(part.any() for part in logprob_partials(logits, labels, rows=nothing, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_a_bad_label_among_listed_rows_is_named_by_its_row(backend: str) -> None:
    labels = torch.tensor([[9, 0], [0, 3]])
    good = masked_logprob(torch.zeros(2, 2, 3), labels, rows=torch.tensor([1, 2]), backend=backend)
    assert good.count_nonzero() == 2
    with pytest.raises(ValueError, match=r"^labels: row 3 holds 3, outside 0 … 2$"):
        masked_logprob(torch.zeros(2, 2, 3), labels, rows=torch.tensor([1, 3]), backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(1, dtype=torch.int32)}, r"^rows is int64 \[R\], got torch.int32 \[1\]"),
        ({"rows": torch.zeros(1, 1, dtype=torch.int64)}, r"^rows is int64 \[R\]"),
        ({"rows": torch.zeros(1).long(), "mask": torch.ones(2).bool()}, r"^mask and rows both say"),
        ({"rows": torch.zeros(1, dtype=torch.int64, device="meta")}, r"^rows is on meta and logits on cpu"),
        ({"mask": torch.ones(2, dtype=torch.bool, device="meta")}, r"^mask is on meta and logits on cpu"),
        ({"backward_out": torch.zeros(2, 4)}, r"^backward_out is \[2, 5\] torch.float32 like logits, got \[2, 4\]"),
        ({"backward_out": torch.zeros(2, 5).bfloat16()}, r"^backward_out is .* got \[2, 5\] torch.bfloat16"),
        ({"backward_out": torch.zeros(2, 5), "inplace_backward": True}, r"^backward_out and inplace_backward both say"),
        ({"backward_out": torch.zeros(2, 5, requires_grad=True)}, r"^backward_out takes a gradient"),
        ({"backward_out": torch.zeros(1, 5).expand(2, 5)}, r"^rows of backward_out share memory"),
        ({"logits": LEAF[:1].expand(2, 5), "inplace_backward": True}, r"^rows of logits share memory"),
        ({"logits": LEAF.view(-1)[:6].unfold(0, 5, 1), "inplace_backward": True}, r"^rows of logits share memory"),
        ({"logits": torch._neg_view(LEAF), "inplace_backward": True}, r"negative view"),
        ({"logits": torch.zeros(2, 0)}, r"^logits has a last dimension of at least 1, got \[2, 0\]"),
        ({"logits": torch.tensor(1.0)}, r"^logits has a last dimension"),
        ({"logits": torch.zeros(2, 5, dtype=torch.complex64)}, r"^logits is float32, .*got torch.complex64"),
        ({"logits": torch.zeros(2, 5).to(torch.float8_e4m3fn)}, r"^logits is float32, .*got torch.float8"),
        ({"labels": torch.zeros(2, dtype=torch.uint16)}, r"^labels are integers, got torch.uint16"),
        ({"backend": "cuda"} if "cuda" not in BACKENDS else {"backend": "none"}, r"^backend is 'auto' or one of"),
        ({"logits": torch.zeros(2, 5).double(), "backend": "cpp"}, r"^backend 'cpp' does not compute logits of .*64"),
        ({"temperature": math.inf}, r"^temperature is above 0, got inf"),
        ({"softcap": -1.0}, r"^softcap is above 0 or None"),
    ],
)
def test_f16_arguments_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"logits": torch.zeros(2, 5), "labels": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        masked_logprob(**good | change)


def test_f16_a_gradient_over_the_logits_by_the_back_door() -> None:
    logits = normal(2, 5).requires_grad_() * 1
    with pytest.raises(ValueError, match=r"^backward_out and logits share a storage"):
        masked_logprob(logits, picks(5, 2), backward_out=logits.detach())
