"""What can be said to `rl-think gain`, and what follows from it: RLP's settings, the question, how texts are cut."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from rl_think_ext import settings
from rl_think_ext.data.rlp import RLPDataConfig
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class GainConfig:
    """Measure how much thinking helps a model on a text, without training.

    At each position thoughts are sampled, and the gain of a thought is log p(target | context, thought) minus
    log p(target | context), by the model itself: the number that RLP's reward would be at the start of training.

    rl-think gain --model Qwen/Qwen3-1.7B-Base --data corpus.jsonl --num-positions 4 --max-positions 500

    A run that was stopped goes on when the same command is given again.
    """

    model: str
    """Folder or hub name of the model."""
    data: str
    """A dataset of `rl-think data rlp` (its ids are used exactly), or a .txt, .jsonl or .parquet of texts, or a folder
    of these, which is cut into positions first."""
    output: Path = Path("out/gain")
    """Folder of gain.json, samples.parquet and gain.png."""
    overwrite: bool = False
    """Throw away what --output holds of a measurement with other settings, and what --select holds."""
    split: str = "train"
    """Which split of a dataset."""

    num_thoughts: int = 8
    """Thoughts sampled at each position."""
    max_thought_tokens: int = 256
    """Where a thought is cut off."""
    temperature: float = 1.0
    """Of the sampling; scores are always at temperature 1."""
    seed: int = 0
    """With the numbers of a row and of a thought it decides the thought; batches and interruptions do not."""
    max_positions: int | None = None
    """Measure a random part of the positions, drawn by the seed; without it all of them."""

    select: Path | None = None
    """Write the dataset of the positions at which some thought helps and some does not, for `rl-think train`."""
    min_gain: float = 0.5
    """What helping means for --select, in nats: 0.5 is a target 1.65 times as likely. Any thought moves a prediction a
    little; below some 0.3 nats that is most of what is kept, and up to 1.5 the threshold hardly matters."""
    compare: str | None = None
    """Folder or hub name of a second model, with the same tokens: both on the same positions."""

    config: Path | None = None
    """A YAML file with a `rl_think: rlp:` block, such as a run's own."""
    set: list[str] = field(default_factory=list)
    """Settings of RLP by name, over those of --config: --set num_target_tokens=4 elicit=instruct."""
    max_tokens_per_batch: int | None = None
    """Tokens of one batch, in sampling and in scoring; lower it when memory runs out, the run goes on."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the model; auto is bfloat16 on a GPU and float32 on a CPU."""
    trust_remote_code: bool = False
    """Run the code that a model's repository brings."""

    column: str = "text"
    """Texts: the column that holds them."""
    id_column: str = "id"
    """Texts: the column that holds a document's id."""
    sampler: Literal["sentence", "random", "stride", "entropy"] = "sentence"
    """Texts: where they are cut; see `rl-think data rlp --help`."""
    num_positions: int | None = None
    """Texts: positions per document; without it all."""
    stride: int = 64
    """Texts: distance of the cuts of the sampler stride, in tokens."""
    max_context_tokens: int | None = None
    """Texts: longest context, cut on the left; without it 2048, or what the model has room for."""

    def __post_init__(self) -> None:
        for name in ("num_thoughts", "max_thought_tokens", "max_positions", "max_tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` is at least 1, got {value}")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"`temperature` is above 0 and finite, got {self.temperature}")
        if not 0 <= self.min_gain < math.inf:
            raise UserError(f"`min_gain` is a finite number of nats, at least 0, got {self.min_gain}")

    def rlp(self) -> RLPConfig:
        """RLP's settings: the file's, the pairs of --set over them, and what this measurement cannot be without.

        Raises:
            UserError: an unknown key or a wrong value.
        """
        own = {} if self.max_tokens_per_batch is None else {"max_tokens_per_batch": self.max_tokens_per_batch}
        for name in ("baseline", "frozen_gain"):
            if any(pair.startswith(f"{name}=") for pair in self.set):
                raise UserError(
                    f"--set {name}: the baseline is the measured model itself, without a thought; other baselines are "
                    "for a run (`rl-think replay`), another model is for --compare"
                )
        found = with_pairs(block_of(self.config), self.set, own, str(self.config or "settings"))
        # One model is asked, so the baseline is that model without a thought.
        return dataclasses.replace(found, baseline="live", frozen_gain=False)

    def cutting(self, rlp: RLPConfig, room: int | None, extra: int) -> RLPDataConfig:
        """How texts are cut for a model of `room` positions, of which `extra` are needed behind a thought."""
        # Sixteen more for a BOS and what a way of asking puts around the context.
        left = 2048 if room is None else room - self.max_thought_tokens - extra - 16
        return RLPDataConfig(
            input=self.data,
            output=str(self.output / "data"),
            column=self.column,
            id_column=self.id_column,
            split=self.split,
            tokenizer=self.model,
            sampler=self.sampler,
            num_positions=self.num_positions,
            stride=self.stride,
            model=self.model if self.sampler == "entropy" else None,
            max_context_tokens=self.max_context_tokens or max(2, min(2048, left)),
            num_target_tokens=max(32, rlp.num_target_tokens),
            elicit=rlp.elicit,
            seed=self.seed,
            overwrite=True,
        )


def block_of(path: Path | None, method: str = "rlp") -> dict[str, Any]:
    """The block of a method below `rl_think:` in a YAML file, empty without a file.

    Raises:
        UserError: a file that cannot be read, or no such block in it.
    """
    if path is None:
        return {}
    found = settings.read_file(path)
    block = found if found.keys() == {method} else found.get("rl_think")
    if not isinstance(block, dict):
        raise UserError(f"{path} has no block `rl_think:` with `{method}:` and its settings below it")
    return settings.method_block(block, method, f"{path}: rl_think")


def with_pairs(values: dict[str, Any], pairs: list[str], own: dict[str, Any], where: str) -> RLPConfig:
    """RLP's settings from values, `key=value` pairs over them, and values over both."""
    return with_set(RLPConfig, values, pairs, own, where)


def with_set(kind: type[T], values: dict[str, Any], pairs: list[str], own: dict[str, Any], where: str) -> T:
    """A method's settings from values, `key=value` pairs over them, and values over both.

    Raises:
        UserError: an unknown key with the nearest one, a wrong value, or a pair without `=`.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            example = next(iter(kind.__annotations__))
            raise UserError(f"--set {pair}: expected key=value, such as --set {example}=…")
        settings.check_keys([key], kind.__annotations__, "--set")
        given |= settings.read_yaml(f"{key}: {value}", f"--set {pair}")
    return settings.build(kind, values | given | own, "--set" if given else where)
