"""A model that is ready to be scored: loaded on one device, with its tags and its scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.ema import WeightAverage, bits
from rl_think_ext.scoring.gain import GainScorer, Rollout
from rl_think_ext.scoring.likelihood import Likelihood
from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.scoring.sample import ends_of, max_positions
from rl_think_ext.template import TagIds, canonical_closing, close_thought

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Place:
    """Where a model runs, in which dtype, and whether its repository's code may run."""

    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def load(self, name: str) -> PreTrainedModel:
        """A model by folder or hub name.

        Raises:
            UserError: what cannot be loaded, or a device that is not there.
        """
        device, dtype = place(self.device, self.dtype)
        model = load_model(name, dtype=dtype, trust_remote_code=self.trust_remote_code)
        try:
            return model.to(device)
        except (RuntimeError, AssertionError) as error:
            cause = str(error).splitlines()[0]
            raise UserError(f"cannot put {name} on {device}: {cause}; try --device cpu or --dtype bfloat16") from error


@dataclass(frozen=True)
class Bench:
    """One model and how it is scored."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tags: TagIds
    scorer: GainScorer

    @classmethod
    def of(cls, name: str, rlp: RLPConfig, where: Place, start: str | None = None) -> Bench:
        """Load a model and set it up.

        Args:
            start: The model whose weights are the baseline of `init` and `ema` and those of `frozen_gain`, where the
                settings ask for them; None: it is this model itself.

        Raises:
            UserError: a model, tokenizer, device or dtype that cannot be had, or a start of another shape.
        """
        tokenizer = load_tokenizer(name, trust_remote_code=where.trust_remote_code)
        model = where.load(name)
        tags, needed = TagIds.of(tokenizer), bool(rlp.averages)
        old = _start(model, where, start, name) if needed else None
        likelihood = Likelihood(model, tokenizer.pad_token_id or 0, rlp.max_tokens_per_batch, device=model.device)
        scorer = GainScorer(
            rlp,
            likelihood,
            tags,
            baseline=old.swapped_in if old and rlp.baseline in ("ema", "init") else None,
            frozen=old.swapped_in if old and rlp.frozen_gain else None,
            max_length=max_positions(model),
        )
        return cls(name, model, tokenizer, tags, scorer)

    def rollout(
        self, prompt: Sequence[int], context: Sequence[int], target: Sequence[int], completion: Sequence[int]
    ) -> Rollout:
        """A completion as the trainer's reward reads it."""
        ends = ends_of(self.model, self.tokenizer, self.tags)
        closed = canonical_closing(tuple(completion), self.tags, self.tokenizer)
        thought = close_thought(closed, self.tags, ends, self.scorer.config.elicit == "prefill")
        return Rollout(tuple(prompt), tuple(context), tuple(target), thought)

    @property
    def bits(self) -> int:
        """A number of all weights: a folder that was trained on is another model under the same name."""
        return bits(dict(self.model.named_parameters()))


def _start(model: PreTrainedModel, where: Place, start: str | None, name: str) -> WeightAverage:
    """The start's weights, to be swapped into `model`; every weight counts, whether it trains or not."""
    if start is None or start == name:
        return WeightAverage(model, 1.0)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        model.load_state_dict(where.load(start).state_dict())
        average = WeightAverage(model, 1.0)
        model.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(
            f"{name} and the run's start {start} are models of different shapes, so {start} cannot be its baseline: "
            "use --set baseline=live frozen_gain=false"
        ) from error
    return average


def place(device: str, dtype: str) -> tuple[str, str]:
    """Device and dtype by name; auto: a GPU in bfloat16 where one is there, otherwise the CPU in float32.

    Raises:
        UserError: a name that torch does not know, or a GPU that is not there.
    """
    import torch

    found = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if found.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {found}: torch {torch.__version__} sees no CUDA GPU here; use --device cpu")
    kind = ("bfloat16" if found.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if not isinstance(getattr(torch, kind, None), torch.dtype):
        raise UserError(f"--dtype {kind} is no dtype of torch; use float32, bfloat16 or float16")
    return found, kind
