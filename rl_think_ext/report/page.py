"""The page: everything that was read, put into one template whose every text is made inert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_think_ext.report import curves, draw, facts, headline, samples, strip, text, thoughts
from rl_think_ext.report.folder import Folder

TEMPLATES = Path(__file__).parent / "templates"
# Scorable samples from the end of a run that a colour strip may be made of.
_STRIP_SAMPLES = 2048
_ASK_FOR_TABLES = "No completions table: `log_completions: true` in the run's YAML file writes one at every log."


@dataclass(frozen=True)
class Legend:
    """What one line of a figure is: numbers of colour and dash, whose, what, and its way from first to last."""

    colour: int
    dash: int
    owner: str
    label: str
    way: str


@dataclass(frozen=True)
class Picture:
    """A figure ready for the page; `svg` is the one thing on it that is not escaped."""

    key: str
    title: str
    look: str
    svg: str
    legend: tuple[Legend, ...]

    @property
    def spoken(self) -> str:
        """The figure in words, for those who do not see it."""
        said = ", ".join(" ".join(filter(None, (one.owner, one.label, one.way))) for one in self.legend)
        return f"{self.title}: {said}"


def render(folders: Sequence[Folder]) -> str:
    """The HTML of a page for one or two folders; the same folders give the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": text.signed,
        "bounded": text.bounded,
        "ending": text.ending,
        "sentence": text.sentence,
        "plain": text.plain,
    }
    labels = _labels(folders)
    measured = [(label, headline.measured(folder)) for label, folder in zip(labels, folders, strict=True)]
    known = [(label, found) for label, found in measured if found is not None]
    ceilings = sorted({found.ceiling for _, found in known if found.ceiling is not None})
    figures, missing = curves.figures(folders, ceilings) if any(f.log for f in folders) else ([], [])
    pictures = [_picture(figure, folders, labels) for figure in figures]
    page = environment.get_template("page.html").render(
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        markup=Markup,
        folders=list(zip(labels, folders, strict=True)),
        ledes=[_lede(folder) for folder in folders],
        tiles=headline.tiles(known),
        sources=known,
        unmeasured=[label for label, found in measured if found is None],
        ask_for_tables=_ASK_FOR_TABLES,
        pictures=[*_along(folders, labels), *pictures],
        missing=missing,
        is_thinned=any(curve.is_thinned for figure in figures for curve in figure.curves),
        strips=list(zip(labels, strip.on_one_scale([strip.strips(_samples(f)) for f in folders]), strict=True)),
        thoughts=[(label, _thoughts(folder)) for label, folder in zip(labels, folders, strict=True)],
        tables=facts.tables(folders),
    )
    return str(page)


def _inert(value: Any) -> Any:
    """What every expression of the template passes through on its way to the page."""
    return value if hasattr(value, "__html__") else text.clean(str(value))


def _labels(folders: Sequence[Folder]) -> list[str]:
    """What tells the folders apart: their names, with that of the folder around them where those are equal."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.path.resolve().parent.name}/{folder.name}" for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{name} ({'AB'[i]})" for i, name in enumerate(names)]
    return names


def _lede(folder: Folder) -> str:
    """One sentence on what was done."""
    info = folder.info
    model = f"model {text.plain(info['model'])}" if info.get("model") else "a model that run.json does not name"
    if folder.offline:
        return f"How much thinking helps {model} on {text.plain(info.get('data'))}, without training."
    dataset = info["dataset"] if isinstance(info.get("dataset"), Mapping) else {}
    data = text.plain(dataset["name"]) if dataset.get("name") else "its data"
    rows = f" ({text.plain(dataset['num_rows'])} rows)" if dataset.get("num_rows") else ""
    steps = f", logged up to step {folder.last_step:g}" if folder.last_step is not None else ", nothing logged"
    return f"{str(info.get('method') or 'rlp').upper()} of {model} on {data}{rows}{steps}."


def _picture(figure: curves.Figure, folders: Sequence[Folder], labels: Sequence[str]) -> Picture:
    several = len(folders) > 1
    legend = tuple(
        Legend(
            draw.colour(curve.folder, curve.style, len(folders)),
            curve.style % len(draw.DASHES),
            labels[curve.folder] if several else "",
            curve.label,
            " → ".join(_value(v, figure.spec) for v in (curve.first, curve.last)),
        )
        for curve in figure.curves
    )
    unit = f" [{figure.spec.unit}]" if figure.spec.unit else ""
    return Picture(
        f"fig-{figure.spec.key}", figure.spec.title + unit, figure.spec.look, draw.svg(figure, len(folders)), legend
    )


def _value(value: float, spec: curves.Spec) -> str:
    if spec.share:
        return text.percent(value)
    if spec.unit == "nats":
        return f"{value:.2f}".replace("-", text.MINUS)
    return f"{value:.3g}".replace("-", text.MINUS)


def _along(folders: Sequence[Folder], labels: Sequence[str]) -> Iterable[Picture]:
    """The gain by the place in the document, which an offline measurement knows."""
    rows: list[list[tuple[float, float, float, float]]] = []
    legend: list[Legend] = []
    for label, folder in zip(labels, folders, strict=True):
        entries = folder.info.get("by_position") if folder.offline else None
        points = [p for p in map(_place, entries if isinstance(entries, list) else []) if p is not None]
        if points:
            rows.append(points)
            legend.append(Legend(len(legend), 0, label if len(folders) > 1 else "", "mean gain, 95 % interval", ""))
    if rows:
        look = "Where in a document thinking helps: a band that stays clear of zero."
        yield Picture("fig-along", "Gain along a document [nats]", look, draw.positions(rows, "along"), tuple(legend))


def _place(entry: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("gain"), Mapping):
        return None
    start, stop = text.number(entry.get("from")), text.number(entry.get("to"))
    mean, low, high = (text.number(entry["gain"].get(name)) for name in ("mean", "low", "high"))
    if start is None or stop is None or mean is None:
        return None
    return (start + stop) / 2, mean, mean if low is None else low, mean if high is None else high


def _samples(folder: Folder) -> list[samples.Sample]:
    return samples.offline(folder) if folder.offline else samples.last(folder, _STRIP_SAMPLES)


def _thoughts(folder: Folder) -> list[thoughts.Pair]:
    if folder.offline:
        return thoughts.alone(samples.offline(folder), "sampled")
    pairs = thoughts.held_out(folder.measured) if folder.measured is not None else []
    if pairs or not folder.tables:
        return pairs
    first, final = samples.ends(folder, headline.LEAST_SAMPLES)
    return thoughts.matched(first, final) if first else thoughts.alone(final, "at the end")
