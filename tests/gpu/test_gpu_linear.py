"""linear_masked_logprob on a GPU: against float64, without waiting, in little memory."""

from __future__ import annotations

import pytest
import torch
from gpu.reference import DTYPES, forward_error, need_gpu, no_wait, relative, truth
from torch import Tensor

from rl_think_ext.kernels import cuda_chunks, linear_masked_logprob

need_gpu()

GPU = torch.device("cuda")
MIB = 2**20
# Rounding of the logits' gradient on its way to its products and of what is returned.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}


@pytest.fixture(autouse=True)
def _full_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def head(rows: int, vocab: int, depth: int, dtype: torch.dtype, density: float = 1.0) -> tuple[Tensor, ...]:
    """Hidden, weight, bias, labels (wild where masked), mask; logits of a few units."""
    draw = torch.Generator(GPU).manual_seed(rows)
    hidden = torch.randn(rows, depth, device=GPU, generator=draw).to(dtype)
    weight = (torch.randn(vocab, depth, device=GPU, generator=draw) * 3 / depth**0.5).to(dtype)
    bias = torch.randn(vocab, device=GPU, generator=draw).to(dtype)
    labels = torch.randint(vocab, (rows,), device=GPU, generator=draw)
    mask = torch.rand(rows, device=GPU, generator=draw) < density
    hidden[~mask], labels[~mask] = torch.nan, -100
    return hidden, weight, bias, labels, mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 7, 8), (33, 5001, 64), (300, 32_000, 256), (64, 50_257, 128)], ids=str)
@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("keep_mib", [0, 1024])
def test_grid(
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    density: float,
    keep_mib: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_chunks, "KEEP_BYTES", keep_mib * MIB)
    monkeypatch.setattr(cuda_chunks, "CHUNK_BYTES", MIB)
    monkeypatch.setattr(cuda_chunks, "CHUNK_ROWS", 128)
    hidden, weight, bias, labels, mask = head(*shape, dtype, density)
    if not mask.any():
        return
    for with_bias, temperature, softcap in ((False, 1.0, None), (True, 0.7, 6.0)):
        ours = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        wide = [x.double().requires_grad_() for x in (hidden[mask], weight, bias)]
        found, entropy = linear_masked_logprob(
            ours[0],
            ours[1],
            labels,
            mask,
            bias=ours[2] if with_bias else None,
            temperature=temperature,
            softcap=softcap,
            entropy=True,
        )
        logits = wide[0] @ wide[1].T + (wide[2] if with_bias else 0)
        true, true_entropy = truth(logits, labels[mask], temperature, softcap)
        # Float32 sums over the depth: a few units in the last place of logits of about 10.
        assert forward_error(found[mask], true) <= 1e-5 and forward_error(entropy[mask], true_entropy) <= 2e-5
        assert not found[~mask].any()
        grad = torch.randn_like(found)
        found.backward(grad)
        (true * grad[mask]).sum().backward()
        assert ours[0].grad is not None and not ours[0].grad[~mask].any()
        pairs = [(ours[0].grad[mask], wide[0].grad), (ours[1].grad, wide[1].grad)]
        for gradient, reference in pairs + ([(ours[2].grad, wide[2].grad)] if with_bias else []):
            assert gradient is not None and reference is not None
            assert relative(gradient, reference) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prebuilt_rows_never_wait(dtype: torch.dtype) -> None:
    hidden, weight, bias, labels, mask = head(300, 20_000, 64, dtype, 0.3)
    rows = mask.nonzero()[:, 0]
    ours = [x.nan_to_num(0).requires_grad_() for x in (hidden, weight, bias)]

    def step() -> None:
        found = linear_masked_logprob(ours[0], ours[1], labels, rows=rows, bias=ours[2], entropy=True)
        found[0].sum().backward()

    step()
    with no_wait():
        step()


def test_a_label_nowhere_makes_its_row_nan() -> None:
    hidden, weight, _, labels, _ = head(8, 5000, 32, torch.bfloat16)
    labels[3] = 5000
    with pytest.raises(ValueError, match="row 3 holds"):
        linear_masked_logprob(hidden, weight, labels)
    found = linear_masked_logprob(hidden, weight, labels, rows=torch.arange(8, device=GPU))
    assert isinstance(found, Tensor) and found.isnan().nonzero()[:, 0].tolist() == [3]


@pytest.mark.parametrize("keep_mib", [0, 1024])
def test_two_backwards(keep_mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_chunks, "KEEP_BYTES", keep_mib * MIB)
    hidden, weight, _, labels, _ = head(64, 9000, 32, torch.float32)
    ours = [x.requires_grad_() for x in (hidden, weight)]
    found = linear_masked_logprob(*ours, labels)
    assert isinstance(found, Tensor)
    first = torch.autograd.grad(found.sum(), ours, retain_graph=True)
    again = torch.autograd.grad(found.sum(), ours)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory() -> None:
    """Dense, V = 151,936, D = 1024: no [N, V] (2.3 GiB in bf16), no float32 [V, D] (0.6 GiB), kept logits too large."""
    hidden, weight, _, labels, _ = head(8192, 151_936, 1024, torch.bfloat16)
    ours = [x.requires_grad_() for x in (hidden, weight)]

    def peak(mib: float) -> None:
        torch.cuda.synchronize()
        used = (torch.cuda.max_memory_allocated() - before) / MIB
        assert used <= mib, f"{used:.0f} MiB, at most {mib:.0f}"

    chunk = cuda_chunks.CHUNK_BYTES / MIB
    linear_masked_logprob(hidden[:8], weight, labels[:8])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = linear_masked_logprob(*ours, labels, rows=torch.arange(8192, device=GPU))
    assert isinstance(found, Tensor)
    # One chunk of logits, the compact copy of hidden, states of rows.
    peak(chunk + 16 + 8)
    found.sum().backward()
    returned = (hidden.nbytes + weight.nbytes) / MIB
    # Chunk, its bf16 gradient, one slice of the weight's gradient, hidden's gradient in float32 and its two copies.
    peak(returned + chunk * 2.5 + 16 + 32 + 16 + 16 + 8)


def test_graph() -> None:
    hidden, weight, _, labels, mask = head(128, 9000, 64, torch.bfloat16, 0.5)
    rows = mask.nonzero()[:, 0]
    ours = [x.nan_to_num(0).requires_grad_() for x in (hidden, weight)]

    def step() -> tuple[Tensor, ...]:
        found = linear_masked_logprob(*ours, labels, rows=rows)
        assert isinstance(found, Tensor)
        return found, *torch.autograd.grad(found.sum(), ours)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        ours[0].mul_(0.5)
    graph.replay()
    for found, again in zip(captured, step(), strict=True):
        torch.testing.assert_close(found, again)


def test_compiled_whole() -> None:
    hidden, weight, bias, labels, mask = head(64, 9000, 32, torch.bfloat16, 0.5)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        found = linear_masked_logprob(x * 1.5, w, labels, mask, bias=bias, softcap=20.0)
        assert isinstance(found, Tensor)
        return found.exp().sum()

    plain, compiled = ([x.clone().requires_grad_() for x in (hidden, weight)] for _ in range(2))
    loss(*plain).backward()
    torch.compile(loss, fullgraph=True)(*compiled).backward()
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_autocast_inside_and_outside() -> None:
    """Under autocast the head is bf16, and the float32 sums inside stay float32."""
    hidden, weight, _, labels, _ = head(64, 9000, 32, torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = linear_masked_logprob(hidden, weight, labels)
    plain = linear_masked_logprob(hidden.bfloat16(), weight.bfloat16(), labels)
    assert isinstance(found, Tensor) and found.dtype == torch.float32 and torch.equal(found, plain)
