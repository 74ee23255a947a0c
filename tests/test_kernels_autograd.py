"""The kernels among torch's machinery: graphs, checkpoints, autocast, transforms, shards, threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from kernel_grid import WAYS, computed, exact, gradients, normal, picks, threads
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rl_think_ext.kernels import available_backends, linear_masked_logprob, logprob_partials, masked_logprob

BACKENDS = available_backends()
ROWS, VOCAB, DEPTH = 6, 70, 9


def data() -> tuple[Tensor, Tensor, Tensor]:
    return normal(ROWS, VOCAB).requires_grad_(), picks(VOCAB, ROWS), torch.arange(ROWS) % 3 > 0


def head() -> tuple[Tensor, Tensor, Tensor]:
    return normal(ROWS, DEPTH), normal(VOCAB, DEPTH, seed=1), normal(VOCAB, seed=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_carries_no_gradient(backend: str) -> None:
    logits, labels, mask = data()
    plain = torch.autograd.grad(masked_logprob(logits, labels, mask, backend=backend).sum(), logits)[0]  # type: ignore[union-attr]
    logprob, entropy = masked_logprob(logits, labels, mask, entropy=True, backend=backend)
    assert not entropy.requires_grad and entropy.grad_fn is None
    (got,) = torch.autograd.grad(logprob.sum() + 3 * (logprob.detach() * entropy).sum(), logits)
    assert torch.equal(got, plain)
    hidden, weight, _ = head()
    _, entropy = linear_masked_logprob(hidden.requires_grad_(), weight, labels, entropy=True, backend=backend)
    assert not entropy.requires_grad


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_some_of_the_heads_tensors(way: str, wanted: tuple[int, ...]) -> None:
    labels = picks(VOCAB, ROWS)
    wide = [x.double().requires_grad_() for x in head()]
    expected = torch.autograd.grad(exact(wide[0] @ wide[1].t() + wide[2], labels)[0].sum(), wide)
    leaves = [x.requires_grad_(i in wanted) for i, x in enumerate(head())]
    with computed(way) as backend:
        linear_masked_logprob(*leaves[:2], labels, bias=leaves[2], backend=backend).sum().backward()  # type: ignore[union-attr]
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in wanted)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad.double(), expected[i], atol=1e-6, rtol=1e-5)


def test_a_second_backward_over_memory_that_is_gone_is_an_error() -> None:
    logits, labels, _ = data()
    kept = logits * 1
    out = masked_logprob(kept, labels, inplace_backward=True, backend="cpp")
    assert isinstance(out, Tensor)
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    # Whoever else saved them is told too.
    shared = logits * 1
    other = shared.exp().sum() + (shared**2).sum()
    masked_logprob(shared, labels, inplace_backward=True, backend="cpp").sum().backward()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_is_kept_gives_the_same_again(backend: str) -> None:
    logits, labels, mask = data()
    for place in ({}, {"backward_out": torch.empty(ROWS, VOCAB)}):
        out = masked_logprob(logits, labels, mask, backend=backend, **place)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        first = torch.autograd.grad(out.sum(), logits, retain_graph=True)[0].clone()
        assert torch.equal(torch.autograd.grad(out.sum(), logits)[0], first)


def test_a_second_derivative_is_refused() -> None:
    logits, labels, _ = data()
    hidden, weight, _ = head()
    calls: list[tuple[Tensor, Callable[[], Any]]] = [
        (logits, lambda: masked_logprob(logits, labels, backend="cpp")),
        (hidden, lambda: linear_masked_logprob(hidden.requires_grad_(), weight, labels, backend="cpp")),
    ]
    for leaf, call in calls:
        out = call()
        (grad,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            grad.sum().backward()
    for place in ({"inplace_backward": True}, {"backward_out": torch.empty(ROWS, VOCAB)}):
        out = masked_logprob(logits * 1, labels, backend="cpp", **place)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        with pytest.raises(NotImplementedError, match="create_graph"):
            torch.autograd.grad(out.sum(), logits, create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_give_the_same_gradients(backend: str, reentrant: bool) -> None:
    logits, labels, mask = data()
    hidden, weight, bias = head()

    def both(x: Tensor, h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        first = masked_logprob(x * 2, labels, mask, backend=backend)
        second = linear_masked_logprob(h, w, labels, mask, bias=b, backend=backend)
        return first + second  # type: ignore[operator]

    leaves = (logits, hidden, weight, bias)
    expected = gradients(both, *leaves)
    copies = [x.detach().clone().requires_grad_() for x in leaves]
    checkpoint(both, *copies, use_reentrant=reentrant).sum().backward()
    assert all(torch.equal(x.grad, y) for x, y in zip(copies, expected, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [{}, {"inplace_backward": True}], ids=str)
def test_saved_tensors_may_be_packed(place: dict[str, Any]) -> None:
    logits, labels, mask = data()

    def run(x: Tensor) -> Any:
        return masked_logprob(x * 1, labels, mask, **place)

    expected = gradients(run, logits)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
        got = gradients(run, logits)
    with torch.autograd.graph.save_on_cpu():
        again = gradients(run, logits)
    assert torch.equal(got[0], expected[0]) and torch.equal(again[0], expected[0])  # type: ignore[arg-type]


def test_modes_and_parameters() -> None:
    logits, labels, mask = data()
    expected = masked_logprob(logits.detach(), labels, mask)
    assert isinstance(expected, Tensor)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            got = masked_logprob(logits, labels, mask)
            assert isinstance(got, Tensor) and torch.equal(got, expected)
            parts = logprob_partials(logits, labels, mask)
            assert not any(part.requires_grad for part in parts)
    weight = nn.Parameter(normal(VOCAB, DEPTH))
    hidden = nn.Parameter(normal(ROWS, DEPTH))
    linear_masked_logprob(hidden, weight, labels).sum().backward()  # type: ignore[union-attr]
    assert weight.grad is not None and hidden.grad is not None
    with torch.inference_mode():
        inside = masked_logprob(torch.zeros(ROWS, VOCAB), labels, inplace_backward=True)
    assert isinstance(inside, Tensor) and inside.is_inference()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_the_head_as_linear_does(backend: str) -> None:
    hidden, weight, bias = (x.requires_grad_() for x in head())
    labels = picks(VOCAB, ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_masked_logprob(hidden, weight, labels, bias=bias, backend=backend)
        from_logits = masked_logprob(normal(ROWS, VOCAB), labels, backend=backend)
    expected = linear_masked_logprob(
        *(x.bfloat16() for x in (hidden, weight)), labels, bias=bias.bfloat16(), backend=backend
    )
    assert isinstance(got, Tensor) and isinstance(expected, Tensor) and isinstance(from_logits, Tensor)
    assert torch.equal(got, expected) and got.dtype == torch.float32
    assert torch.equal(from_logits, masked_logprob(normal(ROWS, VOCAB), labels, backend=backend))  # type: ignore[arg-type]
    got.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in (hidden, weight, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_functorch_is_refused(backend: str) -> None:
    logits, labels, _ = data()
    hidden, weight, _ = head()
    x = logits.detach()
    calls: list[Callable[[], Any]] = [
        lambda: torch.vmap(lambda a, b: masked_logprob(a, b, backend=backend))(x, labels),
        lambda: torch.func.grad(lambda a: masked_logprob(a, labels, backend=backend).sum())(x),  # type: ignore[union-attr]
        lambda: torch.func.jvp(lambda a: masked_logprob(a, labels, backend=backend), (x,), (x,)),
        lambda: torch.func.jacrev(lambda a: masked_logprob(a, labels))(x),
        lambda: torch.vmap(lambda a, b: linear_masked_logprob(a, weight, b, backend=backend))(hidden, labels),
        lambda: torch.vmap(lambda a, b: logprob_partials(a, b, backend=backend))(x, labels),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match="functorch"):
            call()


def test_kernel_hazard_13_a_sharded_tensor_is_refused(tmp_path: Any) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        logits, labels, _ = data()
        hidden, weight, bias = head()
        spread = {
            name: distribute_tensor(x.detach(), mesh, [Replicate()])
            for name, x in {"logits": logits, "hidden": hidden, "weight": weight, "bias": bias}.items()
        }
        calls: dict[str, Callable[[], Any]] = {
            "logits": lambda: masked_logprob(spread["logits"], labels),
            "hidden": lambda: linear_masked_logprob(spread["hidden"], weight, labels),
            "weight": lambda: linear_masked_logprob(hidden, nn.Parameter(spread["weight"]), labels),
            "bias": lambda: linear_masked_logprob(hidden, weight, labels, bias=spread["bias"]),
        }
        for name, call in calls.items():
            with pytest.raises(NotImplementedError, match=rf"^{name} is a DTensor: gather it first"):
                call()
    finally:
        dist.destroy_process_group()


def work(way: str = "cpp") -> list[Tensor]:
    """Enough for several threads: segments, rows, spans, slabs."""
    logits, labels = normal(5, 70_001, scale=3.0), picks(70_001, 5)
    hidden, weight = normal(40, 33), normal(5_000, 33, seed=1)
    some = picks(5_000, 40)
    found = gradients(lambda x: masked_logprob(x, labels, backend=way), logits)
    found += gradients(lambda h, w: linear_masked_logprob(h, w, some, backend=way), hidden, weight)
    found += [
        *masked_logprob(logits, labels, entropy=True, backend=way),
        *logprob_partials(logits, labels, backend=way),
    ]
    found += linear_masked_logprob(hidden, weight, some, entropy=True, backend=way)
    return [x for x in found if x is not None]


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("cpp")])
def test_kernel_hazard_7_the_number_of_threads_changes_no_bit(way: str) -> None:
    with computed(way) as backend:
        with threads(1):
            expected = work(backend)
        for number in (2, 4, 7):
            with threads(number):
                assert all(torch.equal(a, b) for a, b in zip(work(backend), expected, strict=True)), number


def test_kernel_hazard_7_calls_from_many_threads_at_once() -> None:
    with threads(3):
        expected = work()
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: work(), range(8)):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _child(queue: Any) -> None:
    torch.set_num_threads(1)  # what torch's own pool needs after a fork; ours is told below
    import rl_think_ext.kernels.ops as ops

    logits, labels = normal(5, 70_001, scale=3.0), picks(70_001, 5)
    before, torch.get_num_threads = torch.get_num_threads, lambda: 3
    try:
        assert ops.torch.get_num_threads() == 3
        out = masked_logprob(logits, labels)
    finally:
        torch.get_num_threads = before
    assert isinstance(out, Tensor)
    queue.put((out.tolist(), threading.active_count(), len(os.listdir("/proc/self/task"))))


def test_kernel_hazard_7_a_fork_computes_with_threads_of_its_own() -> None:
    logits, labels = normal(5, 70_001, scale=3.0), picks(70_001, 5)
    with threads(3):
        expected = masked_logprob(logits, labels)
    assert isinstance(expected, Tensor)
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=_child, args=(queue,))
        child.start()
    try:
        found, _, tasks = queue.get(timeout=60)
    finally:
        child.join(10)
        if child.is_alive():
            child.kill()
    assert found == expected.tolist()
    assert tasks >= 3  # the caller and two helpers


def test_kernel_hazard_7_a_process_ends_while_its_threads_wait() -> None:
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "from rl_think_ext.kernels import masked_logprob\n"
        "print(masked_logprob(torch.zeros(4, 70001), torch.zeros(4, dtype=torch.long)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "torch.Size([4])\n"), done.stderr
