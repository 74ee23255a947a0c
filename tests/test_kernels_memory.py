"""Where tensors lie: views, negative views, memory that was freed, offsets beyond 2^31 (kernels.md 1, 2, 11, 13)."""

from __future__ import annotations

import mmap
import subprocess
import sys
from typing import Any

import pytest
import torch
from kernel_grid import WAYS, assert_near, computed, exact, gradients, normal, picks
from torch import Tensor
from torch.autograd import forward_ad

from rl_think_ext.kernels import available_backends, linear_masked_logprob, logprob_partials, masked_logprob

BACKENDS = available_backends()


@pytest.mark.parametrize("way", WAYS)
def test_kernel_hazard_1_views_of_every_kind(way: str) -> None:
    whole = normal(3, 4, 5, 67)
    views = {
        "all but the last position": whole[0, :, :-1],
        "all but the first number": whole[0, :, :, 1:],
        "transposed vocabulary": whole[0].transpose(0, 2),
        "swapped rows": whole[0].transpose(0, 1),
        "every second number": whole[0, ..., ::2],
        "one row for all": whole[0, 0, :1].expand(6, 67),
        "one batch for all": whole[:1].expand(5, 4, 5, 67),
        "overlapping rows": whole.view(-1)[:40].unfold(0, 7, 3),
        "four dimensions": whole,
        "four that do not collapse": whole.transpose(0, 2),
        "five": whole.view(3, 2, 2, 5, 67).transpose(1, 3),
        "one number, expanded": torch.ones(1, 1).expand(3, 9),
    }
    with computed(way) as backend:
        for name, view in views.items():
            labels = picks(view.shape[-1], *view.shape[:-1])
            plain = view.contiguous()
            expected = masked_logprob(plain, labels, entropy=True, backend=backend)
            for got, wanted in zip(masked_logprob(view, labels, entropy=True, backend=backend), expected, strict=True):
                assert torch.equal(got, wanted), name
            parts = logprob_partials(view, labels, backend=backend), logprob_partials(plain, labels, backend=backend)
            assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True)), name
            leaf, other = view.detach().requires_grad_(), plain.detach().clone().requires_grad_()
            for x in (leaf, other):
                masked_logprob(x, labels, backend=backend).sum().backward()  # type: ignore[union-attr]
            assert torch.equal(leaf.grad, other.grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ["logits", "out"])
def test_kernel_hazard_1_gradients_into_views(backend: str, place: str) -> None:
    def shaped(x: Tensor, name: str) -> Tensor:
        return {"rows": x[:, :, :-1], "numbers": x[..., ::2], "dims": x.transpose(0, 2)}[name]

    for name in ("rows", "numbers", "dims"):
        leaf = normal(2, 3, 4, 10)
        view = shaped(leaf, name)
        labels = picks(view.shape[-1], *view.shape[:-1])
        (expected,) = gradients(lambda x, y=labels: masked_logprob(x, y, backend=backend), view)
        start = leaf.clone().requires_grad_()
        logits = shaped(start * 1, name)
        logits.retain_grad()
        room = shaped(torch.full_like(leaf, 7.0), name)
        kind: dict[str, Any] = {"inplace_backward": True} if place == "logits" else {"backward_out": room}
        masked_logprob(logits, labels, backend=backend, **kind).sum().backward()
        assert expected is not None and start.grad is not None
        assert torch.equal(shaped(start.grad, name), expected), name
        if place == "out":
            assert torch.equal(room, expected), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_hazard_2_negative_views(backend: str) -> None:
    pair = torch.randn(3, 9, dtype=torch.complex64)
    logits, labels = pair.conj().imag, torch._neg_view(-picks(9, 3))
    assert logits.is_neg() and labels.is_neg()
    plain = -pair.imag
    for kind in (backend, "auto"):
        expected = masked_logprob(plain, picks(9, 3), backend=kind)
        assert torch.equal(masked_logprob(logits, labels, backend=kind), expected)  # type: ignore[arg-type]
        assert torch.equal(masked_logprob(logits, picks(9, 3), backend=kind), expected)  # type: ignore[arg-type]
    whole = torch._neg_view(normal(3, 9))  # nothing else would make a copy of it
    assert torch.equal(masked_logprob(whole, picks(9, 3)), masked_logprob(-normal(3, 9), picks(9, 3)))  # type: ignore[arg-type]
    hidden, weight = logits, torch._neg_view(normal(5, 9))
    got = linear_masked_logprob(hidden, weight, labels % 5, backend=backend)
    assert torch.equal(got, linear_masked_logprob(plain, -normal(5, 9), picks(9, 3) % 5, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_hazard_2_a_negative_gradient(backend: str) -> None:
    leaf, labels = normal(3, 9).requires_grad_(), picks(9, 3)
    out = masked_logprob(leaf, labels, backend=backend)
    (got,) = torch.autograd.grad(out, leaf, torch._neg_view(torch.ones(3)), retain_graph=True)
    (expected,) = torch.autograd.grad(out, leaf, -torch.ones(3))
    assert torch.equal(got, expected)


def test_kernel_hazard_13_memory_that_was_freed() -> None:
    # In a process of its own, which a wild read would end.
    code = """
import torch
from rl_think_ext.kernels import linear_masked_logprob, masked_logprob
gone, there, labels = torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)
gone.untyped_storage().resize_(0)  # as FSDP does with a parameter outside the module's own forward
for call in (
    lambda: masked_logprob(gone, labels),
    lambda: linear_masked_logprob(there, gone, labels),
    lambda: linear_masked_logprob(gone, there, labels),
):
    try:
        call()
    except ValueError as error:
        print(str(error)[:40])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the memory of a tensor [3, 5] was freed:"] * 3
    with pytest.raises(ValueError, match=r"^weight has no rows"):
        linear_masked_logprob(torch.zeros(3, 5), torch.zeros(0, 5), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_is_refused(backend: str) -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.zeros(2, 3), torch.ones(2, 3))
        plain = masked_logprob(torch.zeros(2, 3), torch.tensor([0, 1]), backend=backend)
        assert isinstance(plain, Tensor)
        for kind in (backend, "auto"):
            with pytest.raises(NotImplementedError, match="forward-mode"):
                masked_logprob(dual, torch.tensor([0, 1]), backend=kind)


def test_a_default_device_changes_nothing() -> None:
    x, labels = normal(3, 5), picks(5, 3)
    weight = normal(6, 5)
    expected = masked_logprob(x, labels, entropy=True), linear_masked_logprob(x, weight, labels)
    leaf = x.clone().requires_grad_()
    with torch.device("meta"):
        got = masked_logprob(x, labels, entropy=True), linear_masked_logprob(x, weight, labels)
        (masked_logprob(leaf, labels).sum() + linear_masked_logprob(leaf, weight, labels).sum()).backward()  # type: ignore[union-attr]
    assert torch.equal(got[0][0], expected[0][0]) and torch.equal(got[0][1], expected[0][1])
    assert torch.equal(got[1], expected[1])  # type: ignore[arg-type]
    assert leaf.grad is not None and leaf.grad.device.type == "cpu" and leaf.grad.isfinite().all()


def sparse_memory(num_bytes: int) -> Tensor:
    """Zeros that take no memory until they are written: address space without a reservation."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, num_bytes, flags=flags), dtype=torch.bfloat16)


@pytest.mark.parametrize("way", WAYS)
def test_kernel_hazard_11_offsets_beyond_2_to_the_31(way: str) -> None:
    # 14,136 rows of 151,936 are more than 2^31 numbers; only the rows that are asked for are touched.
    vocab, rows = 151_936, 14_136
    assert rows * vocab > 2**31 + vocab
    memory = sparse_memory(2 * rows * vocab)
    logits, labels = memory.view(rows, vocab), torch.full((rows,), -100)
    wanted = torch.tensor([0, 14_133, rows - 1])
    logits[wanted], labels[wanted] = normal(3, vocab, dtype=torch.bfloat16), picks(vocab, 3)
    mask = torch.zeros(rows, dtype=torch.bool)
    mask[wanted] = True
    expected, _ = exact(logits[wanted], labels[wanted])
    with computed(way) as backend:
        for which in ({"mask": mask}, {"rows": wanted}):
            got = masked_logprob(logits, labels, backend=backend, **which)
            assert isinstance(got, Tensor)
            assert_near(got[wanted], expected, 5e-7)
            assert got.count_nonzero() == 3


@pytest.mark.parametrize("way", WAYS)
def test_kernel_hazard_11_gradients_beyond_2_to_the_31(way: str) -> None:
    # Three rows that lie 2^30 + 17 numbers apart: the last begins behind 2^31, and nothing between them is touched.
    vocab, step = 3_001, 2**30 + 17
    rows = [sparse_memory(2 * (2 * step + vocab)).as_strided((3, vocab), (step, 1)) for _ in range(2)]
    logits, out = rows
    logits.copy_(normal(3, vocab, dtype=torch.bfloat16))
    compact, labels = logits.clone(), picks(vocab, 3)
    mask = torch.tensor([True, False, True])
    hidden, weight = normal(4, 8, dtype=torch.bfloat16), sparse_memory(2 * (2 * step + 8)).as_strided((3, 8), (step, 1))
    weight.copy_(normal(3, 8, dtype=torch.bfloat16))
    with computed(way) as backend:
        (expected,) = gradients(lambda x: masked_logprob(x, labels, mask, backend=backend), compact)
        got = gradients(lambda h, w: linear_masked_logprob(h, w, picks(3, 4), backend=backend), hidden, weight.clone())
        leaf, head = hidden.clone().requires_grad_(), weight.requires_grad_()
        linear_masked_logprob(leaf, head, picks(3, 4), backend=backend).sum().backward()  # type: ignore[union-attr]
        x = logits.requires_grad_()
        if backend == "cpp":
            masked_logprob(x, labels, mask, backend=backend, backward_out=out).sum().backward()  # type: ignore[union-attr]
            assert expected is not None and torch.equal(out, expected)
        else:
            masked_logprob(x, labels, mask, backend=backend).sum().backward()  # type: ignore[union-attr]
        assert x.grad is not None and expected is not None and torch.equal(x.grad, expected)
    assert torch.equal(leaf.grad, got[0]) and torch.equal(head.grad, got[1])  # type: ignore[arg-type]
