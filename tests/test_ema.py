"""Averages of weights: what they hold, that the model computes with them, and that no wrong file becomes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.ema import WeightAverage, checksum, refuse_sharded, trainable_checksum
from rl_think_ext.scoring.ema import bits as bit_sum
from rl_think_ext.scoring.likelihood import Likelihood, Query


class Scale(nn.Module):
    """One weight that trains, one that does not, and a buffer."""

    def __init__(self, value: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), value, dtype=dtype))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))


def tiny_qwen(tied: bool = True) -> Qwen3ForCausalLM:
    return models.qwen3(19, num_hidden_layers=1, tie_word_embeddings=tied)


@torch.no_grad()
def set_all(model: nn.Module, value: float) -> None:
    for weight in model.parameters():
        weight.fill_(value)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    # As bytes: -0.0 is not 0.0 here, and a NaN equals itself.
    return one.keys() == other.keys() and all(torch.equal(as_bytes(one[k]), as_bytes(other[k])) for k in one)


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def test_equation_6_by_hand() -> None:
    model = Scale(1.0)
    average = WeightAverage(model, 0.75)
    assert average.average["scale"].tolist() == [1.0] * 3  # phi <- theta on the first batch
    set_all(model, 5.0)
    average.update()
    assert average.average["scale"].tolist() == [2.0] * 3  # 0.75 * 1 + 0.25 * 5
    set_all(model, -2.0)
    average.update()
    assert average.average["scale"].tolist() == [1.0] * 3  # 0.75 * 2 - 0.25 * 2
    assert average.updates == 2
    assert model.scale.tolist() == [-2.0] * 3


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 5.0), (1.0, 1.0)])
def test_decay_0_follows_and_decay_1_keeps_the_start(decay: float, expected: float) -> None:
    model = Scale(1.0)
    average = WeightAverage(model, decay)
    set_all(model, 5.0)
    average.update()
    assert average.average["scale"].tolist() == [expected] * 3
    assert average.updates == 1


def test_a_thousand_updates_against_the_closed_form() -> None:
    model = Scale(1.0)
    average = WeightAverage(model, 0.999)
    set_all(model, 2.0)
    for _ in range(1000):
        average.update()
    assert average.average["scale"].tolist() == pytest.approx([2.0 - 0.999**1000] * 3, rel=1e-5)


def test_hazard_3_bf16_weights_are_averaged_in_float32() -> None:
    model = Scale(1.0, torch.bfloat16)
    average = WeightAverage(model, 0.999)
    assert average.average["scale"].dtype == torch.float32
    set_all(model, 1.5)
    average.update()
    assert average.average["scale"].tolist() == pytest.approx([1.0005] * 3, abs=1e-7)  # in bf16 it would stay 1
    for _ in range(999):
        average.update()
    assert average.average["scale"].tolist() == pytest.approx([1.5 - 0.5 * 0.999**1000] * 3, rel=1e-4)
    with average.swapped_in():
        assert model.scale.dtype == torch.bfloat16
        assert model.scale.tolist() == pytest.approx([1.316] * 3, abs=0.004)
    assert model.scale.tolist() == [1.5] * 3


def test_average_does_not_share_memory_with_the_weights() -> None:
    model = Scale(1.0)
    average = WeightAverage(model, 1.0)
    set_all(model, 9.0)
    assert average.average["scale"].tolist() == [1.0] * 3


def test_only_what_trains_is_kept() -> None:
    average = WeightAverage(Scale(), 0.9)
    assert list(average.average) == ["scale"]


def test_hazard_1_the_model_computes_with_the_average_inside() -> None:
    model = tiny_qwen()
    average, likelihood = WeightAverage(model, 1.0), Likelihood(model, pad_id=0)
    query = [Query((1, 2, 3), (4, 5))]
    outside = likelihood(query)[0]
    with average.swapped_in():
        assert torch.equal(likelihood(query)[0], outside)
    for tensor in average.average.values():
        tensor.mul_(3.0)
    with average.swapped_in():
        assert (likelihood(query)[0] - outside).abs().min() > 1e-3
    assert torch.equal(likelihood(query)[0], outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_swap_restores_to_the_bit(dtype: torch.dtype) -> None:
    model = tiny_qwen().to(dtype)
    with torch.no_grad():
        model.lm_head.weight[0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
    average, before = WeightAverage(model, 0.5), bits(model)
    set_all_average(average, 7.0)
    storage = model.lm_head.weight.data_ptr()
    with average.swapped_in():
        assert model.lm_head.weight.unique().tolist() == [7.0]
    assert same_bits(bits(model), before)
    assert model.lm_head.weight.data_ptr() == storage, "an optimizer holds these very tensors"


def set_all_average(average: WeightAverage, value: float) -> None:
    for tensor in average.average.values():
        tensor.fill_(value)


def test_swap_restores_to_the_bit_on_exceptions() -> None:
    model = tiny_qwen()
    average, before = WeightAverage(model, 0.5), bits(model)
    set_all_average(average, 7.0)
    with pytest.raises(KeyboardInterrupt), average.swapped_in():
        raise KeyboardInterrupt
    assert same_bits(bits(model), before)
    # Half-way through the swap itself: the last weight has no average of its shape.
    average.average[list(average.average)[-1]] = torch.zeros(3, 3, 3)
    with pytest.raises(RuntimeError), average.swapped_in():
        raise AssertionError("never entered")
    assert same_bits(bits(model), before)


def test_swaps_nest() -> None:
    model = Scale(1.0)
    inner, outer = WeightAverage(model, 1.0), WeightAverage(model, 1.0)
    set_all_average(outer, 2.0)
    set_all_average(inner, 3.0)
    with outer.swapped_in():
        with inner.swapped_in():
            assert model.scale.tolist() == [3.0] * 3
        assert model.scale.tolist() == [2.0] * 3
    assert model.scale.tolist() == [1.0] * 3


def test_swap_builds_no_graph_and_keeps_the_gradients() -> None:
    model = Scale(1.0)
    average = WeightAverage(model, 0.5)
    model.scale.sum().backward()
    with average.swapped_in():
        assert model.scale.requires_grad
        assert model.scale.is_leaf
    assert model.scale.grad is not None
    assert model.scale.grad.tolist() == [1.0] * 3


def test_tied_weights_are_averaged_once_and_stay_tied() -> None:
    model = tiny_qwen(tied=True)
    average = WeightAverage(model, 0.5)
    assert sum("embed_tokens" in name or "lm_head" in name for name in average.average) == 1
    set_all_average(average, 0.25)
    with average.swapped_in():
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight.unique().tolist() == [0.25]
    assert len(WeightAverage(tiny_qwen(tied=False), 0.5).average) == len(average.average) + 1


def test_checksum_and_distance() -> None:
    model = Scale(2.0)
    average = WeightAverage(model, 1.0)
    assert average.checksum() == trainable_checksum(model) == 6.0
    assert average.distance() == 0.0
    set_all(model, 4.0)
    assert average.distance() == pytest.approx(12**0.5)
    assert checksum({"b": torch.full((2,), 0.5), "a": torch.tensor([2**24, 1.0])}) == 2**24 + 2.0  # lost in float32


def written(folder: Path, decay: float = 0.9) -> WeightAverage:
    average = WeightAverage(tiny_qwen(), decay)
    generator = torch.Generator().manual_seed(3)
    for tensor in average.average.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator))
    average.updates = 17
    average.save(folder, "ema")
    return average


def test_save_and_load_round_trip_to_the_bit(tmp_path: Path) -> None:
    kept = written(tmp_path / "new" / "folder")
    fresh = WeightAverage(tiny_qwen(), 0.9)
    assert fresh.checksum() != kept.checksum()
    fresh.load(tmp_path / "new" / "folder", "ema")
    assert same_bits(fresh.average, kept.average)
    assert fresh.updates == 17
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["ema.json", "ema.safetensors"]
    assert json.loads((tmp_path / "new" / "folder" / "ema.json").read_text())["decay"] == 0.9


def test_two_averages_share_a_folder_and_overwrite_their_own(tmp_path: Path) -> None:
    model = Scale(1.0)
    ema, frozen = WeightAverage(model, 0.5), WeightAverage(model, 1.0)
    for _ in range(2):
        set_all(model, 3.0)
        ema.update()
        ema.save(tmp_path, "ema")
        frozen.save(tmp_path, "frozen")
    other = Scale(3.0)
    fresh_ema, fresh_frozen = WeightAverage(other, 0.5), WeightAverage(other, 1.0)
    fresh_ema.load(tmp_path, "ema")
    fresh_frozen.load(tmp_path, "frozen")
    assert fresh_ema.average["scale"].tolist() == [2.5] * 3
    assert fresh_frozen.average["scale"].tolist() == [1.0] * 3


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def cut_short(folder: Path) -> None:
    content = (folder / "ema.safetensors").read_bytes()
    (folder / "ema.safetensors").write_bytes(content[: len(content) // 2])


def one_byte_changed(folder: Path) -> None:
    content = bytearray((folder / "ema.safetensors").read_bytes())
    content[-2] ^= 0x7F
    (folder / "ema.safetensors").write_bytes(bytes(content))


def only_partial(folder: Path) -> None:
    # As kill -9 leaves it between writing and publishing.
    (folder / "ema.safetensors").rename(folder / "ema.partial")
    (folder / "ema.json").rename(folder / "ema.json.partial")


def weights_newer_than_the_manifest(folder: Path) -> None:
    # Killed between the two publications of a second save.
    about = (folder / "ema.json").read_text()
    average = WeightAverage(tiny_qwen(), 0.9)
    average.save(folder, "ema")
    (folder / "ema.json").write_text(about)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("ema.safetensors"), "ema.json or its .safetensors is missing"),
        (without("ema.json"), "ema.json or its .safetensors is missing"),
        (only_partial, "ema.json or its .safetensors is missing"),
        (cut_short, "ema.safetensors cannot be read"),
        (with_text("ema.safetensors", "not weights"), "ema.safetensors cannot be read"),
        (with_text("ema.json", '{"decay": 0.9, "upd'), "ema.json cannot be read"),
        (with_text("ema.json", ""), "ema.json cannot be read"),
        (with_text("ema.json", "[1]"), "ema.json does not hold decay, updates and checksums"),
        (with_text("ema.json", '{"decay": 0.9}'), "ema.json does not hold decay, updates and checksums"),
        (one_byte_changed, "the checksums differ"),
        (weights_newer_than_the_manifest, "the checksums differ"),
    ],
)
def test_hazard_13_f18_f19_missing_half_or_corrupt_files_are_refused(
    spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    written(tmp_path)
    spoil(tmp_path)
    fresh = WeightAverage(tiny_qwen(), 0.9)
    before = {k: v.clone() for k, v in fresh.average.items()}
    with pytest.raises(UserError, match=words) as caught:
        fresh.load(tmp_path, "ema")
    assert "Resume from another checkpoint" in str(caught.value)
    assert same_bits(fresh.average, before), "a refused file leaves no trace"
    assert fresh.updates == 0


def test_f19_averages_of_another_policy_are_refused(tmp_path: Path) -> None:
    WeightAverage(Scale(1.0), 0.5).save(tmp_path, "ema")
    with pytest.raises(UserError, match="belongs to another policy than the one that was loaded"):
        WeightAverage(Scale(2.0), 0.5).load(tmp_path, "ema")


def test_integrity_check_is_an_exact_sum_of_bit_patterns() -> None:
    torch.manual_seed(0)
    wide, narrow = torch.randn(1000, 37), torch.randn(5, 3).bfloat16()
    patterns = {"a": wide.numpy().view("int32"), "b": narrow.view(torch.int16).numpy()}
    by_hand = sum(place * int(patterns[name].astype(object).sum()) for place, name in enumerate("ab", start=1))
    assert bit_sum({"b": narrow, "a": wide}) == by_hand % 2**61
    assert bit_sum({"a": wide.flip(0), "b": narrow}) == by_hand % 2**61, "the order of summation does not matter"
    changed = wide.clone()
    changed[3, 5] = changed[3, 5].nextafter(torch.tensor(9.0))
    assert bit_sum({"a": changed, "b": narrow}) != by_hand % 2**61


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_integrity_check_does_not_depend_on_the_threads(threads: int, tmp_path: Path) -> None:
    """A float sum does: a healthy checkpoint was refused with another number of threads."""
    torch.manual_seed(0)
    model = nn.Linear(1024, 4096)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        WeightAverage(model, 0.5).save(tmp_path, "ema")
        torch.set_num_threads(threads)
        WeightAverage(model, 0.5).load(tmp_path, "ema")
    finally:
        torch.set_num_threads(before)


def test_f19_other_decay_names_both(tmp_path: Path) -> None:
    written(tmp_path, decay=0.9)
    with pytest.raises(UserError, match=r"averaged with decay 0\.9, the settings say 0\.99\b"):
        WeightAverage(tiny_qwen(), 0.99).load(tmp_path, "ema")


def test_f19_other_shape_or_other_weights_name_the_weight(tmp_path: Path) -> None:
    WeightAverage(Scale(), 0.9).save(tmp_path, "ema")
    wider = Scale()
    wider.scale = nn.Parameter(torch.ones(4))
    with pytest.raises(UserError, match=r"weight scale has shape \[4\] here and \[3\] there"):
        WeightAverage(wider, 0.9).load(tmp_path, "ema")
    more = Scale()
    more.shift = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match=r"weight shift has shape \[2\] here and nothing there"):
        WeightAverage(more, 0.9).load(tmp_path, "ema")
    WeightAverage(more, 0.9).save(tmp_path, "ema")
    with pytest.raises(UserError, match=r"holds shift, which does not train here"):
        WeightAverage(Scale(), 0.9).load(tmp_path, "ema")


class Sharded(nn.Parameter):
    """As FSDP2's DTensor: a parameter that knows `to_local`."""

    def to_local(self) -> Tensor:
        return self.data[:1]


def zero_3() -> nn.Module:
    model = Scale()
    model.scale.ds_id = 0  # what deepspeed.zero.Init leaves on a parameter
    return model


def fsdp_2() -> nn.Module:
    model = Scale()
    model.scale = Sharded(torch.ones(3))
    return model


def fsdp_1() -> nn.Module:
    model = Scale()
    model.register_parameter("_flat_param", nn.Parameter(torch.ones(3)))
    return model


@pytest.mark.parametrize("build", [zero_3, fsdp_2, fsdp_1])
def test_hazard_4_sharded_weights_are_refused_aloud(build: Callable[[], nn.Module]) -> None:
    model = build()
    with pytest.raises(UserError, match=r"sharded over processes \((scale|_flat_param)\)"):
        refuse_sharded(model)
    with pytest.raises(UserError, match="sharded"):
        WeightAverage(model, 0.9)
