"""Log-probs against plain arithmetic in float64, on a grid; what is masked is never read (F16, kernels.md 1, 5, 9)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_grid import WAYS, computed
from torch import Tensor

from rl_think_ext.kernels import available_backends, linear_masked_logprob, masked_logprob

BACKENDS = available_backends()
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# The torch backend computes float64 too, for oracles.
WAYS_AND_DTYPES = (*itertools.product(WAYS, FLOATS), ("torch", torch.float64))
NUMBERS = ((1.0, None), (0.7, None), (2.0, 5.0), (1.0, 30.0))
SHAPES = (
    (1, 1),  # a vocabulary of one: log-prob and entropy are 0
    (3, 2),  # the smallest choice
    (5, 7),  # under one register of 8 floats
    (2, 31),  # one under a warp of 32
    (4, 33),  # one over it
    (3, 257),  # one over a block of 256
    (2, 1025),  # an odd tail behind 1,024
    (2, 3, 65),  # two leading dimensions, one over 64
    (19,),  # no leading dimension: one row, a label without a shape
)


def oracle_row(
    row: list[float], label: int, temperature: float = 1.0, softcap: float | None = None
) -> tuple[float, float]:
    z = [(x if softcap is None else softcap * math.tanh(x / softcap)) / temperature for x in row]
    highest = max(z)
    log_sum = highest + math.log(math.fsum(math.exp(v - highest) for v in z))
    return z[label] - log_sum, -math.fsum(math.exp(v - log_sum) * (v - log_sum) for v in z)


def oracle(logits: Tensor, labels: Tensor, mask: Tensor | None, *numbers: Any) -> tuple[Tensor, Tensor]:
    rows = logits.detach().double().reshape(-1, logits.shape[-1]).tolist()
    keep = [True] * len(rows) if mask is None else mask.reshape(-1).tolist()
    found = [
        oracle_row(row, int(label), *numbers) if kept else (0.0, 0.0)
        for row, label, kept in zip(rows, labels.reshape(-1), keep, strict=True)
    ]
    pair = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).unbind(-1)
    return pair[0].reshape(labels.shape), pair[1].reshape(labels.shape)


def assert_within(got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (got.double() - expected).abs() / (1 + expected.abs())
    assert error.numel() == 0 or float(error.max()) <= tolerance


def batch(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(math.prod(shape))
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    mask = torch.rand(shape[:-1], generator=generator) < 0.6
    return logits, labels, mask


def test_two_logits_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(2, 1)
    logprob, entropy = masked_logprob(logits, torch.tensor([0, 1]), entropy=True)
    torch.testing.assert_close(logprob, torch.tensor([math.log(0.25), math.log(0.75)]))
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(entropy, torch.tensor([by_hand, by_hand]))


def test_cap_comes_before_the_temperature() -> None:
    got = masked_logprob(torch.tensor([[50.0, 0.0]]), torch.tensor([1]), temperature=2.0, softcap=3.0)
    # Capped first: 3 * tanh(50 / 3) / 2 = 1.5. The other way round it would be 3 * tanh(25 / 3) = 3.
    torch.testing.assert_close(got, torch.tensor([-math.log(1 + math.exp(1.5))]))


@pytest.fixture
def backend(way: str) -> Iterator[str]:
    with computed(way) as name:
        yield name


@pytest.mark.parametrize(("way", "dtype"), WAYS_AND_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grid_against_float64(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    logits, labels, some = batch(shape, dtype)
    wide = dtype == torch.float64
    for (temperature, softcap), mask in itertools.product(NUMBERS, (None, some)):
        numbers: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "backend": backend}
        expected, expected_entropy = oracle(logits, labels, mask, temperature, softcap)
        got, entropy = masked_logprob(logits, labels, mask, entropy=True, **numbers)
        assert got.shape == entropy.shape == labels.shape
        assert got.dtype == entropy.dtype == (torch.float64 if wide else torch.float32)
        assert_within(got, expected, 1e-13 if wide else 5e-7)
        assert_within(entropy, expected_entropy, 1e-13 if wide else 3e-6)
        assert torch.equal(masked_logprob(logits, labels, mask, **numbers), got), (
            "the entropy must not change the log-prob"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_f16_vocabulary_of_qwen3(backend: str, dtype: torch.dtype) -> None:
    logits, labels, _ = batch((3, 151_936), dtype)
    labels[0] = 151_935
    expected, expected_entropy = oracle(logits, labels, None)
    got, entropy = masked_logprob(logits, labels, entropy=True, backend=backend)
    assert_within(got, expected, 5e-7)
    assert_within(entropy, expected_entropy, 3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_logits_up_to_1e4(backend: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 9_999.5], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]])
    labels = torch.tensor([1, 0, 1])
    expected, expected_entropy = oracle(logits, labels, None)
    got, entropy = masked_logprob(logits, labels, entropy=True, backend=backend)
    assert_within(got, expected, 5e-7)
    assert_within(entropy, expected_entropy, 3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ruled_out_logits_leave_the_entropy_finite(backend: str) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]])
    logprob, entropy = masked_logprob(logits, torch.tensor([1]), entropy=True, backend=backend)
    assert logprob.tolist() == [-math.inf]
    torch.testing.assert_close(entropy, torch.tensor([math.log(2.0)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_of_all_labels_sum_to_one(backend: str) -> None:
    logits, _, _ = batch((4, 129), torch.bfloat16, scale=6.0)
    rows = logits[:, None].expand(4, 129, 129)
    labels = torch.arange(129).expand(4, 129)
    total = masked_logprob(rows, labels, temperature=0.7, softcap=9.0, backend=backend).double().exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_masked_rows_are_never_read(backend: str) -> None:
    logits, labels, _ = batch((4, 33), torch.float32)
    mask = torch.tensor([True, False, True, False])
    clean = masked_logprob(logits, labels, mask, backend=backend)
    poisoned, strange = logits.clone(), labels.clone()
    poisoned[~mask] = torch.nan
    strange[~mask] = torch.tensor([-100, 10**12])
    poisoned.requires_grad_()
    got, entropy = masked_logprob(poisoned, strange, mask, entropy=True, backend=backend)
    assert torch.equal(got, clean)
    assert got[~mask].tolist() == entropy[~mask].tolist() == [0.0, 0.0]
    got.sum().backward()
    assert poisoned.grad is not None
    assert poisoned.grad.isfinite().all()
    assert poisoned.grad[mask].abs().sum() > 0
    assert not poisoned.grad[~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 5), (2, 2, 5)], ids=str)
def test_empty_and_all_masked(backend: str, shape: tuple[int, ...]) -> None:
    logits = torch.full(shape, torch.nan, requires_grad=True)
    labels, nothing = torch.full(shape[:-1], -100), torch.zeros(shape[:-1], dtype=torch.bool)
    got, entropy = masked_logprob(logits, labels, nothing, entropy=True, backend=backend)
    assert got.shape == entropy.shape == shape[:-1]
    assert not got.any()
    assert not entropy.any()
    got.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_without_a_mask(backend: str) -> None:
    assert masked_logprob(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), backend=backend).shape == (0,)


@pytest.mark.parametrize(("label", "row"), [(-1, 4), (7, 4), (-100, 4), (10**12, 4)])
def test_kernel_hazard_9_f16_bad_label_names_its_row(label: int, row: int) -> None:
    labels = torch.zeros(2, 3, dtype=torch.long)
    labels[1, 1] = label
    with pytest.raises(ValueError, match=rf"^labels: row {row} holds {label}, outside 0 … 6$"):
        masked_logprob(torch.zeros(2, 3, 7), labels)
    with pytest.raises(ValueError, match=rf"row {row} holds {label}"):
        linear_masked_logprob(torch.zeros(2, 3, 4), torch.zeros(7, 4), labels)
    # The first bad row among those that are asked for, not the first of all.
    labels[0, 0] = -100
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 0] = False
    with pytest.raises(ValueError, match=rf"row {row} holds {label}"):
        masked_logprob(torch.zeros(2, 3, 7), labels, mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_integer_labels_of_every_width(backend: str, dtype: torch.dtype) -> None:
    logits, labels, mask = batch((9, 100), torch.float32)
    expected = masked_logprob(logits, labels, mask, backend=backend)
    assert torch.equal(masked_logprob(logits, labels.to(dtype), mask, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_hazard_1_f16_strided_arguments(backend: str) -> None:
    logits, labels, mask = batch((6, 4, 33), torch.float32)
    expected = masked_logprob(logits, labels, mask, backend=backend)
    assert expected.any()
    views = {
        "vocabulary not innermost": (logits.transpose(0, 2).contiguous().transpose(0, 2), labels, mask),
        "every second row": (logits.repeat_interleave(2, 0)[::2], labels, mask),
        "labels and mask transposed": (logits, labels.t().contiguous().t(), mask.t().contiguous().t()),
        "a slice of a longer vocabulary": (torch.cat([logits, logits], -1)[..., :33], labels, mask),
    }
    for name, (view, label_view, mask_view) in views.items():
        got = masked_logprob(view, label_view, mask_view, backend=backend)
        assert torch.equal(got, expected), name
    one = logits[0, 0]
    shared = masked_logprob(one.expand(5, 33), labels[0, :1].expand(5), backend=backend)
    assert len(set(shared.tolist())) == 1
    assert_within(shared[:1], oracle(one[None], labels[0, :1], None)[0], 5e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_one_hot_minus_softmax(backend: str) -> None:
    logits, labels, mask = batch((5, 33), torch.float32)
    logits.requires_grad_()
    weights = torch.linspace(-1, 2, 5)
    (masked_logprob(logits, labels, mask, temperature=0.7, backend=backend) * weights).sum().backward()
    z = logits.detach().double() / 0.7
    expected = (torch.nn.functional.one_hot(labels, 33) - z.softmax(-1)) / 0.7 * (weights * mask)[:, None]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("entropy", [False, True])
def test_gradcheck_of_the_reference(temperature: float, softcap: float | None, entropy: bool) -> None:
    logits, labels, mask = batch((4, 7), torch.float64)
    mask[0], mask[1] = True, False

    def run(x: Tensor) -> Tensor:
        out = masked_logprob(
            x, labels, mask, temperature=temperature, softcap=softcap, entropy=entropy, backend="torch"
        )
        return out[0] if isinstance(out, tuple) else out

    assert torch.autograd.gradcheck(run, logits.requires_grad_())


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradcheck_of_the_linear_reference(softcap: float | None) -> None:
    hidden, labels, mask = batch((2, 3, 5), torch.float64)
    labels, mask[0, 0] = labels % 4, True
    weight, bias = batch((4, 5), torch.float64)[0], batch((4,), torch.float64)[0]
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]

    def run(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        out = linear_masked_logprob(h, w, labels, mask, bias=b, temperature=0.7, softcap=softcap, backend="torch")
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_hazard_5_gradient_survives_a_row_offset(backend: str) -> None:
    # Multiples of 1/64 stay what they are at an offset of -5,000; one float32 log-sum-exp would not.
    logits = (batch((3, 65), torch.float32)[0] * 64).round() / 64
    labels, grads = torch.tensor([0, 30, 64]), []
    for offset in (0.0, -5_000.0, 5_000.0):
        x = (logits + offset).requires_grad_()
        masked_logprob(x, labels, backend=backend).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_is_detached_and_the_log_prob_is_not(backend: str) -> None:
    logits, labels, mask = batch((4, 7), torch.float32)
    logprob, entropy = masked_logprob(logits.requires_grad_(), labels, mask, entropy=True, backend=backend)
    assert logprob.requires_grad
    assert not entropy.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_stay_as_they_were(backend: str) -> None:
    logits, labels, mask = batch((4, 7), torch.float32)
    before = [x.clone() for x in (logits, labels, mask)]
    masked_logprob(logits, labels, mask, temperature=0.7, softcap=2.0, entropy=True, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip((logits, labels, mask), before, strict=True))


@pytest.mark.parametrize(("way", "dtype"), WAYS_AND_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 33, 7), (2, 17, 257)], ids=str)  # rows, odd inner size, vocabulary
def test_linear_against_float64(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, inner, vocab = shape
    hidden, _, mask = batch((rows, inner), dtype)
    weight, bias = batch((vocab, inner), dtype, scale=0.3)[0], batch((vocab,), dtype)[0]
    labels = torch.arange(rows) % vocab
    for given, (temperature, softcap) in itertools.product((None, bias), NUMBERS):
        logits = hidden.double() @ weight.double().t() + (0.0 if given is None else given.double())
        expected = oracle(logits, labels, mask, temperature, softcap)
        got = linear_masked_logprob(
            hidden,
            weight,
            labels,
            mask,
            bias=given,
            temperature=temperature,
            softcap=softcap,
            entropy=True,
            backend=backend,
        )
        assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # A bf16 product would be off by 1e-2: rows are multiplied in float32.
        assert_within(got[0], expected[0], 3e-6)
        assert_within(got[1], expected[1], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_never_reads_masked_rows(backend: str) -> None:
    hidden, _, _ = batch((4, 5), torch.float32)
    mask = torch.tensor([True, False, False, True])
    hidden[~mask] = torch.nan
    weight = batch((9, 5), torch.float32)[0].requires_grad_()
    labels = torch.tensor([3, -100, 99, 8])
    got = linear_masked_logprob(hidden.requires_grad_(), weight, labels, mask, backend=backend)
    assert isinstance(got, Tensor)
    got.sum().backward()
    assert weight.grad is not None
    assert hidden.grad is not None
    assert weight.grad.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert not hidden.grad[~mask].any()


@pytest.mark.parametrize("bias", [torch.zeros(1), torch.zeros(2, 4), torch.zeros(4, dtype=torch.float64)], ids=str)
def test_bias_that_would_broadcast_is_refused(bias: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^bias is \[4\] torch.float32 like weight"):
        linear_masked_logprob(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 1]), bias=bias)


@pytest.mark.parametrize(
    "weight", [torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 3, dtype=torch.bfloat16)], ids=str
)
def test_weight_that_does_not_fit_is_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^weight is "):
        linear_masked_logprob(torch.zeros(2, 3), weight, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"^labels have the shape of logits .*\[2\]; got \[3\]"),
        ({"labels": torch.zeros(2)}, r"^labels are integers, got torch.float32"),
        ({"labels": torch.zeros(2, dtype=torch.bool)}, r"^labels are integers, got torch.bool"),
        ({"labels": torch.zeros(2, dtype=torch.long, device="meta")}, r"^labels is on meta and logits on cpu"),
        ({"mask": torch.ones(2)}, r"^mask is bool \[2\], got torch.float32 \[2\]"),
        ({"mask": torch.ones(2, 1, dtype=torch.bool)}, r"^mask is bool \[2\]"),
        ({"logits": torch.zeros(2, 5, dtype=torch.long)}, r"^logits is float32, bfloat16 or float16, got torch.int64"),
        ({"temperature": 0.0}, "^temperature is above 0, got 0.0"),
        ({"temperature": -1.0}, "^temperature is above 0, got -1.0"),
        ({"temperature": math.nan}, "^temperature is above 0, got nan"),
        ({"softcap": 0.0}, "^softcap is above 0 or None, got 0.0"),
        ({"softcap": math.nan}, "^softcap is above 0 or None, got nan"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"logits": torch.zeros(2, 5), "labels": torch.zeros(2, dtype=torch.long)}
    masked_logprob(**good)
    with pytest.raises(ValueError, match=message):
        masked_logprob(**{**good, **change})


def test_the_compiled_backend_is_there() -> None:
    assert "cpp" in BACKENDS, "not compiled: what most users get would go untested (is there a C++ compiler?)"


def test_f17_float64_is_for_the_torch_backend() -> None:
    for call in (
        lambda: masked_logprob(torch.zeros(1, 2).double(), torch.tensor([0]), backend="cpp"),
        lambda: linear_masked_logprob(torch.zeros(1, 2).double(), torch.zeros(3, 2), torch.tensor([0]), backend="cpp"),
    ):
        with pytest.raises(ValueError, match=r"^backend 'cpp' does not compute (logits|hidden) of torch.float64"):
            call()


def test_f17_explicit_backend_that_is_not_there_raises() -> None:
    for call in (
        lambda: masked_logprob(torch.zeros(1, 2), torch.tensor([0]), backend="abacus"),
        lambda: linear_masked_logprob(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), backend="abacus"),
    ):
        with pytest.raises(ValueError, match=r"backend is 'auto' or one of .*'torch'.* here, got 'abacus'"):
            call()
