"""masked_logprob on a GPU: the grid against float64, memory that must not be touched, and what must not wait.

compute-sanitizer over these: see benchmarks/logprob_cuda.py --help.
"""

from __future__ import annotations

import pytest
import torch
from gpu.reference import (
    DTYPES,
    GRADIENT,
    NUMBERS,
    forward_bound,
    forward_error,
    need_gpu,
    no_wait,
    relative,
    truth,
)
from torch import Tensor

from rl_think_ext.kernels import logprob_partials, masked_logprob

need_gpu()

GPU = torch.device("cuda")
SHAPES = (
    (1, 1),  # a vocabulary of one
    (5, 7),  # less than a 16-byte vector of bf16
    (3, 31),  # one under a warp
    (2, 3, 65),  # two leading dimensions
    (70_001, 3),  # more rows than the y and z of a grid hold
    (9, 4096),  # the last vocabulary of a warp a row
    (9, 4097),  # the first of a block a row, odd
    (1, 151_936),  # one row: split over blocks
    (40, 50_257),  # odd: every row at another distance from a 16-byte boundary
    (600, 32_000),  # more rows than blocks at once
)


def sample(shape: tuple[int, ...], dtype: torch.dtype, density: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of which unwanted rows are NaN, labels that are wild there, mask."""
    draw = torch.Generator(GPU).manual_seed(sum(shape))
    logits = (torch.randn(shape, device=GPU, generator=draw) * 4).to(dtype)
    labels = torch.randint(shape[-1], shape[:-1], device=GPU, generator=draw)
    mask = torch.rand(shape[:-1], device=GPU, generator=draw) < density
    logits[~mask], labels[~mask] = torch.nan, -100
    return logits, labels, mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.05])
def test_grid(dtype: torch.dtype, shape: tuple[int, ...], density: float) -> None:
    logits, labels, mask = sample(shape, dtype, density)
    for entropy, (temperature, softcap) in ((e, n) for e in (False, True) for n in NUMBERS):
        x = logits.clone().requires_grad_()
        found = masked_logprob(x, labels, mask, temperature=temperature, softcap=softcap, entropy=entropy)
        logprob, entropies = found if isinstance(found, tuple) else (found, None)
        wide = logits[mask].double().requires_grad_()
        true, true_entropy = truth(wide, labels[mask], temperature, softcap)
        bound = forward_bound(logits[mask], temperature, softcap) if mask.any() else 1.0
        assert forward_error(logprob[mask], true) <= bound
        assert not logprob[~mask].any()
        if entropies is not None:
            assert forward_error(entropies[mask], true_entropy) <= 3e-6 + bound
            assert not entropies.requires_grad and not entropies[~mask].any()
        grad = torch.randn_like(logprob)
        logprob.backward(grad)
        (true * grad[mask]).sum().backward()
        assert x.grad is not None and wide.grad is not None and not x.grad[~mask].any()
        if shape[-1] > 1:
            assert relative(x.grad[mask], wide.grad) <= GRADIENT[dtype] + (bound if softcap else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("vocab", [8, 1001, 9999])
def test_misaligned(dtype: torch.dtype, offset: int, vocab: int) -> None:
    """Any first element; NaN before and behind is neither read nor written; out at another distance than the logits."""
    rows = 5
    memory = torch.full((offset + rows * vocab + 16,), torch.nan, dtype=dtype, device=GPU)
    logits = memory[offset : offset + rows * vocab].view(rows, vocab)
    logits.copy_(torch.randn(rows, vocab))
    labels = torch.tensor([0, vocab - 1, 1, vocab // 2, 3], device=GPU)
    beside = torch.full((rows * vocab + 17,), 7.0, dtype=dtype, device=GPU)
    wide = logits.double().requires_grad_()
    true = truth(wide, labels)[0]
    true.sum().backward()
    assert wide.grad is not None
    x = logits.detach().requires_grad_()
    for out in (None, beside[1 : 1 + rows * vocab].view(rows, vocab)):
        found = masked_logprob(x, labels, backward_out=out)
        assert isinstance(found, Tensor) and forward_error(found, true.detach()) <= 5e-7
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert relative(gradient, wide.grad) <= GRADIENT[dtype]
    assert (beside[:1] == 7).all() and (beside[1 + rows * vocab :] == 7).all()
    assert memory[:offset].isnan().all() and memory[offset + rows * vocab :].isnan().all()


def test_strided_rows_are_not_copied() -> None:
    logits, labels, _ = sample((4, 33, 20_000), torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = masked_logprob(logits[:, :-1], labels[:, 1:].contiguous())
    assert torch.cuda.max_memory_allocated() - before < 2**20
    assert isinstance(found, Tensor)
    assert forward_error(found, truth(logits[:, :-1], labels[:, 1:])[0]) <= 5e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inplace(dtype: torch.dtype) -> None:
    logits, labels, mask = sample((37, 5001), dtype, 0.3)
    x = logits.clone().requires_grad_()
    masked_logprob(x, labels, mask).sum().backward()
    y = logits.clone().requires_grad_()
    inner = y * 1
    address = inner.data_ptr()
    masked_logprob(inner, labels, mask, inplace_backward=True).sum().backward()
    assert inner.data_ptr() == address and torch.equal(inner.detach(), y.grad) and torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_offsets_beyond_2_31(dtype: torch.dtype) -> None:
    """2^31 + V elements and a few: the last rows, and their gradient, are where 32 bits end."""
    vocab = 151_936
    rows = 2**31 // vocab + 3
    need = rows * vocab * (2 if dtype == torch.bfloat16 else 4)
    if torch.cuda.mem_get_info()[0] < 1.3 * need:
        pytest.skip(f"needs {1.3 * need / 2**30:.0f} GiB of GPU memory")
    logits = torch.empty(rows, vocab, dtype=dtype, device=GPU)
    mask = torch.zeros(rows, dtype=torch.bool, device=GPU)
    labels = torch.full((rows,), -100, device=GPU)
    for row in (0, rows - 2, rows - 1):
        logits[row].normal_()
        mask[row], labels[row] = True, row % vocab
    wide = logits[mask].double().requires_grad_()
    true = truth(wide, labels[mask])[0]
    true.sum().backward()
    assert wide.grad is not None
    x = logits.requires_grad_()
    found = masked_logprob(x, labels, mask, inplace_backward=True)
    assert isinstance(found, Tensor) and forward_error(found[mask], true.detach()) <= 5e-7
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.data_ptr() == logits.data_ptr()
    assert relative(gradient[mask], wide.grad) <= GRADIENT[dtype] and not gradient[1:5].any()


def test_rows_instead_of_a_mask() -> None:
    logits, labels, mask = sample((3, 40, 6000), torch.bfloat16, 0.2)
    rows = mask.view(-1).nonzero()[:, 0]
    gradients = []
    for wanted in ({"mask": mask}, {"rows": rows}):
        x = logits.clone().requires_grad_()
        found = masked_logprob(x, labels, entropy=True, **wanted)
        found[0].sum().backward()
        gradients.append((*found, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_prebuilt_rows_never_wait() -> None:
    logits, labels, mask = sample((64, 40_000), torch.bfloat16, 0.2)
    rows = mask.nonzero()[:, 0]
    x = logits.clone().requires_grad_()
    masked_logprob(x, labels, rows=rows).sum().backward()
    with no_wait():
        found = masked_logprob(x, labels, rows=rows, temperature=0.8, entropy=True)
        found[0].sum().backward()


def test_nan_and_infinities() -> None:
    for vocab in (9, 9000):
        logits = torch.randn(6, vocab, device=GPU)
        logits[0], logits[1], logits[2, 3], logits[3, 0] = torch.nan, -torch.inf, torch.inf, torch.nan
        logits[4, ::2], logits[5] = -torch.inf, logits[5] + 5000
        labels = torch.full((6,), 4, device=GPU)
        x = logits.requires_grad_()
        found, entropy = masked_logprob(x, labels, entropy=True)
        assert found[[0, 2, 3]].isnan().all() and found[[1, 4]].isneginf().all() and entropy[[0, 1, 2, 3]].isnan().all()
        assert entropy[4:].isfinite().all() and forward_error(found[5:], truth(logits[5:], labels[5:])[0]) <= 5e-7
        (gradient,) = torch.autograd.grad(found[1:].sum(), x)
        assert gradient[1:4].isnan().all() and gradient[4:].isfinite().all()


def test_bad_labels() -> None:
    logits, labels, _ = sample((6, 5000), torch.float32)
    for wrong in (-1, 5000, 2**40):
        bad = labels.clone()
        bad[2] = wrong
        with pytest.raises(ValueError, match="row 2 holds"):
            masked_logprob(logits, bad)
        x = logits.clone().requires_grad_()
        found = masked_logprob(x, bad, rows=torch.arange(6, device=GPU))
        assert isinstance(found, Tensor) and found.isnan().nonzero()[:, 0].tolist() == [2]
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient[2].isnan().all() and gradient[[0, 1, 3, 4, 5]].isfinite().all()


def test_rows_that_are_none() -> None:
    """Numbers out of range are left out: no memory is touched for them."""
    logits, labels, _ = sample((6, 5000), torch.float32)
    x = logits.requires_grad_()
    found = masked_logprob(x, labels, rows=torch.tensor([-3, 1, 6, 2**40], device=GPU))
    assert isinstance(found, Tensor) and found.nonzero()[:, 0].tolist() == [1]
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.any(-1).nonzero()[:, 0].tolist() == [1]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 5)], ids=str)
def test_nothing_wanted(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, torch.nan, device=GPU, requires_grad=True)
    labels = torch.full(shape[:-1], -100, device=GPU)
    nobody = torch.zeros(shape[:-1], dtype=torch.bool, device=GPU)
    for wanted in ({"mask": nobody}, {"rows": nobody.view(-1).nonzero()[:, 0]}):
        found = masked_logprob(x, labels, **wanted)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert not found.any() and not gradient.any()


def test_partials_of_shards() -> None:
    logits, labels, _ = sample((30, 9001), torch.bfloat16)
    cut, temperature = 4000, 0.7
    one = logprob_partials(logits[:, :cut], labels, temperature=temperature)
    two = logprob_partials(logits[:, cut:], labels, first=cut, temperature=temperature)
    highest = torch.maximum(one.max, two.max)
    total = sum(part.sum * ((part.max - highest) / temperature).exp() for part in (one, two))
    found = one.label + two.label - highest / temperature - total.log()
    assert forward_error(found, truth(logits, labels, temperature)[0]) <= 1e-6


def test_graph() -> None:
    """Captured once, replayed on other numbers."""
    logits, labels, mask = sample((24, 9000), torch.bfloat16, 0.5)
    rows = mask.nonzero()[:, 0]
    x = logits.nan_to_num(0).requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        found = masked_logprob(x, labels, rows=rows)
        assert isinstance(found, Tensor)
        return found, torch.autograd.grad(found.sum(), x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, gradient = step()
    with torch.no_grad():
        x.mul_(0.5)
    graph.replay()
    again, gradient_again = step()
    assert torch.equal(found, again) and torch.equal(gradient, gradient_again)


def test_current_stream() -> None:
    """On the stream that is current: after a slow producer there, not on the default one."""
    source = torch.randn(64, 30_000, device=GPU)
    labels = torch.zeros(64, dtype=torch.long, device=GPU)
    rows = torch.arange(64, device=GPU)
    true = truth(source, labels)[0]
    late = torch.zeros_like(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(source)
        found = masked_logprob(late, labels, rows=rows)
    stream.synchronize()
    assert isinstance(found, Tensor) and forward_error(found, true) <= 5e-7


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_device() -> None:
    other = torch.device("cuda", 1)
    logits, labels, _ = sample((24, 9000), torch.bfloat16)
    found = masked_logprob(logits.to(other), labels.to(other))
    assert isinstance(found, Tensor) and found.device == other and torch.cuda.current_device() == 0
    assert torch.equal(found.to(GPU), masked_logprob(logits, labels))


def test_compiled_whole() -> None:
    logits, labels, mask = sample((12, 5000), torch.bfloat16, 0.5)

    def loss(x: Tensor) -> Tensor:
        logprob, entropy = masked_logprob(x * 1.5, labels, mask, temperature=0.9, entropy=True)
        return (logprob.exp() + 0.1 * entropy).sum()

    plain, compiled = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(plain).backward()
    torch.compile(loss, fullgraph=True)(compiled).backward()
    torch.testing.assert_close(plain.grad, compiled.grad)
