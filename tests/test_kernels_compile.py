"""The kernels as ops: opcheck, FakeTensor, torch.compile without a graph break, export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_grid import gradients, normal, picks
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rl_think_ext.kernels import linear_masked_logprob, logprob_partials, masked_logprob

ROWS, VOCAB, DEPTH = 6, 33, 8
LABELS, MASK = picks(VOCAB, ROWS), torch.arange(ROWS) % 3 > 0
LISTED = MASK.nonzero()[:, 0]
CHOICES: dict[str, dict[str, Any]] = {"all": {}, "mask": {"mask": MASK}, "rows": {"rows": LISTED}}
OPS = torch.ops.rl_think_ext


def logits() -> Tensor:
    return normal(ROWS, VOCAB)


def head() -> tuple[Tensor, Tensor, Tensor]:
    return normal(ROWS, DEPTH), normal(VOCAB, DEPTH, seed=1), normal(VOCAB, seed=2)


@pytest.mark.parametrize("choice", CHOICES)
def test_opcheck_of_the_forward_ops(choice: str) -> None:
    chosen = CHOICES[choice].get("mask"), CHOICES[choice].get("rows")
    for entropy in (False, True):
        for softcap in (0.0, 3.0):
            x = logits().requires_grad_()
            torch.library.opcheck(OPS.logprob.default, (x, LABELS, *chosen, 0.7, softcap, entropy, False, None))
    hidden, weight, bias = head()
    given = (hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    torch.library.opcheck(OPS.linear_logprob.default, (*given, LABELS, *chosen, 0.7, 3.0, True, False))
    torch.library.opcheck(OPS.linear_logprob.default, (*given[:2], None, LABELS, *chosen, 1.0, 0.0, False, False))
    torch.library.opcheck(OPS.logprob_partials.default, (logits(), LABELS, *chosen, 0.7, 0.0, 3))


@pytest.mark.parametrize("choice", CHOICES)
def test_opcheck_of_the_backward_ops(choice: str) -> None:
    chosen = CHOICES[choice].get("mask"), CHOICES[choice].get("rows")
    x, grad = logits(), torch.ones(ROWS)
    _, _, highest, log_sum = OPS.logprob(x, LABELS, *chosen, 0.7, 0.0, False, False, None)
    state = (LABELS, *chosen, highest, log_sum, 0.7, 0.0)
    torch.library.opcheck(OPS.logprob_backward.default, (grad, x, *state))
    torch.library.opcheck(OPS.logprob_backward_into.default, (grad, x, *state, torch.empty_like(x)))
    torch.library.opcheck(OPS.logprob_backward_inplace.default, (grad, x.clone(), *state))
    hidden, weight, bias = head()
    _, _, highest, log_sum, kept = OPS.linear_logprob(hidden, weight, bias, LABELS, *chosen, 0.7, 0.0, False, False)
    for needs in ((True, True, True), (True, False, False), (False, True, True)):
        arguments = (grad, hidden, weight, bias, LABELS, *chosen, highest, log_sum, kept, 0.7, 0.0, *needs)
        torch.library.opcheck(OPS.linear_logprob_backward.default, arguments)


def compiled(call: Callable[..., Any], backend: str = "aot_eager", dynamic: bool | None = None) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend=backend, dynamic=dynamic)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_a_graph_break(choice: str, entropy: bool, backend: str) -> None:
    numbers: dict[str, Any] = {**CHOICES[choice], "temperature": 0.7, "softcap": 9.0, "entropy": entropy}

    def from_logits(x: Tensor) -> Any:
        out = masked_logprob(x * 2, LABELS, **numbers)
        return (out[0] * 3, out[1]) if entropy else (out * 3,)  # type: ignore[operator]

    def from_hidden(h: Tensor, w: Tensor, b: Tensor) -> Any:
        out = linear_masked_logprob(h * 2, w, LABELS, bias=b, **numbers)
        return (out[0] * 3, out[1]) if entropy else (out * 3,)  # type: ignore[operator]

    for call, leaves in ((from_logits, (logits(),)), (from_hidden, head())):
        fast = compiled(call, backend)
        for got, expected in zip(fast(*leaves), call(*leaves), strict=True):
            torch.testing.assert_close(got, expected)
        for got, expected in zip(gradients(fast, *leaves), gradients(call, *leaves), strict=True):
            torch.testing.assert_close(got, expected)


def test_compiled_for_sizes_that_change() -> None:
    fast = compiled(masked_logprob, dynamic=True)
    linear = compiled(linear_masked_logprob, dynamic=True)
    for rows, vocab in ((6, 33), (7, 40), (3, 129)):
        x, y, m = normal(rows, vocab), picks(vocab, rows), torch.arange(rows) % 2 > 0
        torch.testing.assert_close(fast(x, y, m), masked_logprob(x, y, m))
        (got,), (expected,) = (gradients(lambda a, f=f, y=y, m=m: f(a, y, m), x) for f in (fast, masked_logprob))
        torch.testing.assert_close(got, expected)
        h, w = normal(rows, DEPTH), normal(vocab, DEPTH)
        torch.testing.assert_close(linear(h, w, y, m), linear_masked_logprob(h, w, y, m))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["inplace", "out"])
def test_compiled_with_a_place_for_the_gradient(place: str, backend: str) -> None:
    out = torch.full((ROWS, VOCAB), torch.nan)
    kind: dict[str, Any] = {"inplace_backward": True} if place == "inplace" else {"backward_out": out}
    fast = compiled(lambda x: masked_logprob(x * 2, LABELS, MASK, **kind), backend)
    (got,) = gradients(fast, logits())
    (expected,) = gradients(lambda x: masked_logprob(x * 2, LABELS, MASK), logits())
    torch.testing.assert_close(got, expected)


def test_a_compiled_graph_names_a_bad_label_too() -> None:
    fast = compiled(masked_logprob)
    bad = LABELS.clone()
    bad[4] = VOCAB
    fast(logits(), LABELS)
    with pytest.raises(ValueError, match=r"^labels: row 4 holds 33, outside 0 … 32$"):
        fast(logits(), bad)


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones() -> None:
    def calls(x: Tensor, y: Tensor, m: Tensor, h: Tensor, w: Tensor) -> list[Tensor]:
        return [
            *masked_logprob(x, y, m, entropy=True),
            *linear_masked_logprob(h, w, y, m, entropy=True),
            *logprob_partials(x, y, m),
        ]

    real = (logits().bfloat16(), LABELS, MASK, *head()[:2])
    expected = calls(*real)
    with FakeTensorMode() as mode:
        found = calls(*(mode.from_tensor(x) for x in real))
    assert [(x.shape, x.dtype, x.stride()) for x in found] == [(x.shape, x.dtype, x.stride()) for x in expected]


def test_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor, m: Tensor) -> Any:
            return masked_logprob(x, y, m, entropy=True)

    program = torch.export.export(Module(), (logits(), LABELS, MASK))
    for got, expected in zip(program.module()(logits(), LABELS, MASK), Module()(logits(), LABELS, MASK), strict=True):
        torch.testing.assert_close(got, expected)
