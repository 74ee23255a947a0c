"""Averages of a model's trainable weights, kept beside it in float32 and swapped in for a forward.

Eq. 6 of RLP (arXiv 2510.01265): phi <- theta on the first batch, then phi <- tau * phi + (1 - tau) * theta after each
optimizer step. A second module is never made: copies of a patched model compute the policy, not the copy. What does
not train is not stored, so with an adapter this is the base plus the average of the adapter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_think_ext.errors import UserError


class WeightAverage:
    """An exponential moving average of `model`'s trainable weights; decay 1 keeps the start.

    Args:
        model: The model itself, not a wrapper; its parameters are read and, inside `swapped_in`, written.
        decay: tau, from 0 to 1.
        shards: Average this process's part of weights that FSDP2 has split; `checksum`, `distance` and the files are
            then of that part.

    Raises:
        UserError: weights that are split over processes, and `shards` does not say so or the way is not FSDP2.
    """

    def __init__(self, model: nn.Module, decay: float, *, shards: bool = False) -> None:
        refuse_sharded(model, but_fsdp2=shards)
        self.model, self.decay, self.updates = model, decay, 0
        # named_parameters() names tied weights once.
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        # float32 whatever the weights are: at tau = 0.999 a bf16 average stands still.
        self.average: dict[str, Tensor] = {
            name: p.detach().to(torch.float32, copy=True) for name, p in self._weights.items()
        }

    @property
    def _weights(self) -> dict[str, Tensor]:
        """The weights that train, looked up anew: a trainer may have moved or split them since."""
        weights = local_weights(self.model)
        return {name: weights[name] for name in self._names}

    @torch.no_grad()
    def update(self) -> None:
        """phi <- tau * phi + (1 - tau) * theta; call it once per optimizer step."""
        if self.decay < 1.0:
            for name, weight in self._weights.items():
                average = self.average[name]
                average.lerp_(weight.detach().to(average.device, torch.float32), 1.0 - self.decay)
        self.updates += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model computes with the average inside, and with its own weights, to the bit, afterwards."""
        saved = {name: weight.detach().clone() for name, weight in self._weights.items()}
        try:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(self.average[name])
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(saved[name])

    def checksum(self) -> float:
        """Sum of all averaged weights in float64: equal on ranks that agree."""
        return checksum(self.average)

    def distance(self) -> float:
        """Euclidean distance between the average and the live weights."""
        total = 0.0
        for name, weight in self._weights.items():
            pairs = zip(_pieces(self.average[name]), _pieces(weight), strict=True)
            total += sum(float((a - w.to(a)).double().square().sum()) for a, w in pairs)
        return float(total**0.5)

    def save(self, folder: str | Path, name: str) -> None:
        """Write `name`.safetensors and, last, `name`.json, each under its final name only when it is whole."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f"{name}.safetensors"
        partial = weights.with_suffix(".partial")
        save_file({k: v.detach().cpu().contiguous() for k, v in self.average.items()}, partial)
        _publish(partial, weights)
        about = {
            "decay": self.decay,
            "updates": self.updates,
            "bits": bits(self.average),
            "policy_bits": bits(self._weights),
            "tensors": len(self.average),
        }
        partial = folder / f"{name}.json.partial"
        partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _publish(partial, folder / f"{name}.json")

    def load(self, folder: str | Path, name: str) -> None:
        """Take up what `save` wrote.

        Raises:
            UserError: a file that is missing, of other weights, of another decay, or not what was written (F19).
        """
        from safetensors.torch import load_file

        about = _read_manifest(Path(folder), name)
        weights = Path(folder) / f"{name}.safetensors"
        try:
            loaded = load_file(weights)
        except Exception as error:  # safetensors has no common exception of its own
            raise UserError(f"{weights} cannot be read: {error}. {_WAY_OUT}") from error
        if about["decay"] != self.decay:
            raise UserError(
                f"{weights} was averaged with decay {about['decay']}, the settings say {self.decay}. {_WAY_OUT}"
            )
        if extra := sorted(loaded.keys() - self.average.keys()):
            raise UserError(
                f"{weights} holds {extra[0]}, which does not train here: it is of another model. {_WAY_OUT}"
            )
        for key, average in self.average.items():
            if key not in loaded or loaded[key].shape != average.shape:
                got = list(loaded[key].shape) if key in loaded else "nothing"
                raise UserError(
                    f"{weights}: weight {key} has shape {list(average.shape)} here and {got} there. {_WAY_OUT}"
                )
        if bits(loaded) != about["bits"]:
            raise UserError(f"{weights} does not hold what {name}.json says: the checksums differ. {_WAY_OUT}")
        if bits(self._weights) != about["policy_bits"]:
            raise UserError(
                f"{weights} belongs to another policy than the one that was loaded: the weights that train differ from "
                f"those it was saved beside. {_WAY_OUT}"
            )
        for key, average in self.average.items():
            average.copy_(loaded[key])
        self.updates = about["updates"]


_WAY_OUT = "Resume from another checkpoint, or start a new run: an average that begins anew would change the reward."


def _read_manifest(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    if not is_whole(folder, name):
        raise UserError(f"the checkpoint holds no averaged weights: {path} or its .safetensors is missing. {_WAY_OUT}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. {_WAY_OUT}") from error
    if not isinstance(about, dict) or not {"decay", "updates", "bits", "policy_bits"} <= about.keys():
        raise UserError(f"{path} does not hold decay, updates and checksums. {_WAY_OUT}")
    return about


def _publish(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    shutil.move(partial, final)


def is_whole(folder: str | Path, name: str) -> bool:
    """Whether a checkpoint holds an average by this name; the manifest is written last."""
    return all((Path(folder) / f"{name}.{ending}").is_file() for ending in ("json", "safetensors"))


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of at most 2^24 elements: what is computed on them needs no second copy of an embedding."""
    return tensor.detach().reshape(-1).split(2**24)


def checksum(weights: Mapping[str, Tensor]) -> float:
    """Sum in float64 over all tensors, for logs: it depends on the order of summation in its last digits."""
    return float(
        sum(float(part.sum(dtype=torch.float64)) for name in sorted(weights) for part in _pieces(weights[name]))
    )


def bits(weights: Mapping[str, Tensor]) -> int:
    """The weights' bit patterns summed as integers, each tensor by its place: exact whatever the device or threads."""
    views = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for place, name in enumerate(sorted(weights), start=1):
        for part in _pieces(weights[name]):
            total += place * int(part.view(views[part.element_size()]).sum(dtype=torch.int64))
    return total % 2**61


def trainable_checksum(model: nn.Module) -> float:
    """The checksum of the weights that train, of this process's part where they are split."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return checksum({name: p for name, p in local_weights(model).items() if name in trained})


@torch.no_grad()
def local_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights by name as this process holds them; of what FSDP2 has split, this process's part.

    What a forward has gathered is let go first: the next forward would not see what is written to a part meanwhile.
    """
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()
    weights = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in model.named_parameters()}
    # A copy of weights to the host may still be under way.
    if torch.cuda.is_available() and any(weight.device.type == "cpu" for weight in weights.values()):
        torch.cuda.synchronize()
    return weights


def refuse_sharded(model: nn.Module, but_fsdp2: bool = False) -> None:
    """Refuse aloud what would silently average nothing.

    Raises:
        UserError: a parameter that ZeRO-3 or FSDP has split over processes, or FSDP2 unless that is allowed.
    """
    for name, parameter in model.named_parameters():
        split = hasattr(parameter, "to_local") and not but_fsdp2
        if hasattr(parameter, "ds_id") or split or "_flat_param" in name:
            raise UserError(
                f"the weights are sharded over processes ({name}): scoring and averaging over shards is not supported "
                "yet. Use DDP, ZeRO-1 or ZeRO-2."
            )
