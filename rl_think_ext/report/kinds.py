"""What a folder can be a run of: for each the figures, the tiles, the alarms and the words of its page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rl_think_ext.methods.alarms import Alarms
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlmt_alarms import RLMTAlarms
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.methods.rlpr import RLPRConfig
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.methods.rlpt_alarms import RLPTAlarms
from rl_think_ext.methods.rpt import RPTConfig
from rl_think_ext.methods.verifree import VeriFreeConfig
from rl_think_ext.report import specs_related, specs_rlmt, specs_rlp, specs_rlpt
from rl_think_ext.report.specs import Spec
from rl_think_ext.report.text import number, percent, signed

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Quantity:
    """A tile's quantity: `key` in measured.json, the sample's `attribute` that holds it, how it is written and drawn.

    `scale` is "gain" (0 and ceilings), "share" (0 to 1), "length" (from 0) or "score" (no zero of its own); `better`
    says whether more is better.
    """

    key: str
    attribute: str
    title: str
    unit: str
    show: Callable[[float | None], str]
    scale: str
    better: bool = True
    texts: str = "texts"


@dataclass(frozen=True)
class Kind:
    """A sort of run.

    Args:
        name: What the page calls it.
        prefix: Of its own metrics.
        config: Its settings' dataclass.
        specs: Its figures.
        quantities: What is compared before and after; none where the run samples nothing.
        alarms: What watches its metrics, or None.
    """

    name: str
    prefix: str
    config: type
    specs: tuple[Spec, ...]
    quantities: tuple[Quantity, ...] = ()
    alarms: Callable[[], Callable[[Metrics], list[str]]] | None = None

    def watched(self, log: Mapping[float, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """What the alarms say of a log."""
        said: list[Mapping[str, Any]] = []
        watch = self.alarms() if self.alarms else lambda metrics: []
        for step, entry in log.items():
            metrics = {name.removeprefix(self.prefix): number(value) for name, value in entry.items()}
            said += [{"step": step, "alarm": alarm} for alarm in watch(metrics)]
        return said


def _characters(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:,.0f}"


def _decimals(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"


RLP = Kind(
    "RLP",
    "rlp/",
    RLPConfig,
    specs_rlp.RLP,
    (
        Quantity("gain", "value", "Gain of a thought", "nats", signed, "gain"),
        Quantity("accuracy", "accuracy", "Accuracy with the thought", "", percent, "share"),
        Quantity("direct_accuracy", "baseline_accuracy", "Accuracy without a thought", "", percent, "share"),
    ),
    Alarms,
)
RLMT = Kind(
    "RLMT",
    "rlmt/",
    RLMTConfig,
    specs_rlmt.RLMT,
    (
        Quantity("score", "value", "Score of the reward model", "", signed, "score", texts="prompts"),
        Quantity("form", "has_form", "Outputs with the right form", "", percent, "share", texts="prompts"),
        Quantity(
            "answer_length",
            "answer_length",
            "Length of an answer",
            "characters",
            _characters,
            "length",
            False,
            "prompts",
        ),
        Quantity(
            "thought_length",
            "thought_length",
            "Length of a thought",
            "characters",
            _characters,
            "length",
            False,
            "prompts",
        ),
    ),
    RLMTAlarms,
)
RLPT = Kind(
    "RLPT",
    "rlpt/",
    RLPTConfig,
    specs_rlpt.RLPT,
    (
        Quantity("right", "value", "Predictions that are right", "", percent, "share", texts="segments"),
        Quantity("judged", "has_form", "Outputs with a prediction to judge", "", percent, "share", texts="segments"),
        Quantity("covered", "covered", "Segments covered", "", _decimals, "length", False, "segments"),
        Quantity(
            "prediction_length",
            "answer_length",
            "Length of a prediction",
            "characters",
            _characters,
            "length",
            False,
            "segments",
        ),
    ),
    RLPTAlarms,
)
SFT = Kind("SFT", "", RLMTConfig, specs_rlmt.SFT)
DPO = Kind("DPO", "", RLMTConfig, specs_rlmt.DPO)
RELATED = {
    "verifree": Kind("VeriFree", "verifree/", VeriFreeConfig, specs_related.answer("verifree")),
    "rlpr": Kind("RLPR", "rlpr/", RLPRConfig, specs_related.answer("rlpr")),
    "rpt": Kind("RPT", "rpt/", RPTConfig, specs_related.RPT),
}


def kind_of(info: Mapping[str, Any], names: Iterable[str]) -> Kind:
    """The kind of a run out of its run.json and the names of its metrics and columns; where nothing tells, RLP."""
    trainer, names = str(info.get("trainer") or ""), set(names)
    if "SFT" in trainer or "DPO" in trainer:
        return SFT if "SFT" in trainer else DPO
    related = RELATED.get(str(info.get("method")))
    if related is not None:
        return related
    own = {"rlp": RLP, "rlmt": RLMT, "rlpt": RLPT}
    if info.get("method") in own:
        return own[str(info["method"])]
    for kind in own.values():
        if any(name.startswith(kind.prefix) for name in names):
            return kind
    if "rewards/margins" in names:
        return DPO
    return SFT if "mean_token_accuracy" in names else RLP
