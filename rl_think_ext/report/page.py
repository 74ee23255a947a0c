"""The page: everything that was read, put into one template whose every text is made inert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.report import curves, facts, headline, pictures, samples, strip, text, thoughts, tiles
from rl_think_ext.report.folder import Folder
from rl_think_ext.report.kinds import RLMT, RLP, RLPT

TEMPLATES = Path(__file__).parent / "templates"
# Scorable samples from the end of a run that a colour strip may be made of.
_STRIP_SAMPLES = 2048
_ASK_FOR_TABLES = "No completions table of training: `log_completions: true` in the YAML file writes one at every log."


def render(folders: Sequence[Folder]) -> str:
    """The HTML of a page for one or two folders; the same folders give the same text."""
    from markupsafe import Markup

    labels = _labels(folders)
    measured = [(label, headline.measured(folder)) for label, folder in zip(labels, folders, strict=True)]
    known = [(label, found) for label, found in measured if found is not None]
    ceilings = sorted({found.ceiling for _, found in known if found.ceiling is not None})
    figures, missing = curves.figures(folders, ceilings) if any(f.log for f in folders) else ([], [])
    drawn = [pictures.picture(figure, folders, labels) for figure in figures]
    page = (
        _environment()
        .get_template("page.html")
        .render(
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            markup=Markup,
            title=" and ".join(dict.fromkeys(folder.kind.name for folder in folders)) + " report",
            folders=list(zip(labels, folders, strict=True)),
            ledes=[_lede(folder) for folder in folders],
            tiles=tiles.tiles(known),
            sources=known,
            unmeasured=[
                label
                for (label, found), folder in zip(measured, folders, strict=True)
                if found is None and folder.kind.quantities
            ],
            ask_for_tables=_ASK_FOR_TABLES,
            pictures=[*pictures.along(folders, labels), *drawn],
            missing=missing,
            is_thinned=any(curve.is_thinned for figure in figures for curve in figure.curves),
            strips=_strips(folders, labels),
            thoughts=[(label, folder, _thoughts(folder)) for label, folder in zip(labels, folders, strict=True)],
            unscored=[(label, folder, _unscored(folder)) for label, folder in zip(labels, folders, strict=True)],
            tables=facts.tables(folders),
        )
    )
    return str(page)


def _environment() -> Any:
    """Jinja with every text escaped, and made inert before that."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    return environment


def _inert(value: Any) -> Any:
    """What every expression of the template passes through on its way to the page."""
    return value if hasattr(value, "__html__") else text.clean(str(value))


def _labels(folders: Sequence[Folder]) -> list[str]:
    """What tells the folders apart: their names, with that of the folder around them where those are equal."""
    names = [text.bounded(folder.name, 40, 10) for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.path.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({'AB'[i]})" for i, name in enumerate(names)]
    return names


def _lede(folder: Folder) -> str:
    """One sentence on what was done."""
    info = folder.info
    model = (
        f"model {text.bounded(text.plain(info['model']), 90, 0)}"
        if info.get("model")
        else "a model that run.json does not name"
    )
    if folder.offline:
        return f"How much thinking helps {model} on {text.plain(info.get('data'))}, without training."
    dataset = info["dataset"] if isinstance(info.get("dataset"), Mapping) else {}
    data = text.plain(dataset["name"]) if dataset.get("name") else "its data"
    rows = f" ({text.plain(dataset['num_rows'])} rows)" if dataset.get("num_rows") else ""
    steps = f", logged up to step {folder.last_step:,.0f}" if folder.last_step is not None else ", nothing logged"
    return f"{folder.kind.name} of {model} on {data}{rows}{_judge(folder)}{steps}."


def _judge(folder: Folder) -> str:
    """Who scores, where it is not the policy itself."""
    settings = folder.info.get("settings")
    if folder.kind is RLPT and isinstance(settings, Mapping):
        judge = "the rule" if settings.get("judge") == "rule" else settings.get("judge_model")
        return f", predictions judged by {text.bounded(text.plain(judge), 90, 0)}" if judge else ""
    if folder.kind is not RLMT or not isinstance(settings, Mapping) or not settings.get("reward_model"):
        return ""
    return f", answers scored by {text.bounded(text.plain(settings['reward_model']), 90, 0)}"


def _strips(folders: Sequence[Folder], labels: Sequence[str]) -> list[tuple[str, strip.Strips, str]]:
    """The colour strips of each folder, and which steps they are of."""
    found = [samples.offline(f) if f.offline else _along(f) for f in folders]
    made = strip.on_one_scale([strip.strips(one) for one in found])
    when = ["" if f.offline else samples.steps_of(one) for f, one in zip(folders, found, strict=True)]
    return list(zip(labels, made, when, strict=True))


def _along(folder: Folder) -> list[samples.Sample]:
    """Samples for the colour strips: only RLP's have a place in a text."""
    return samples.last(folder, _STRIP_SAMPLES) if folder.kind is RLP else []


def _thoughts(folder: Folder) -> list[thoughts.Pair]:
    if folder.offline:
        return thoughts.alone(samples.offline(folder), "sampled")
    pairs = thoughts.held_out(folder.measured) if folder.measured is not None else []
    if pairs or not folder.tables or not folder.kind.quantities:
        return pairs
    first, final = samples.ends(folder, headline.LEAST_SAMPLES)
    return thoughts.matched(first, final) if first else thoughts.alone(final, "at the end")


def _unscored(folder: Folder) -> list[thoughts.Said]:
    """Outputs that the reward model or the judge gave no score: what the form is missing is read off them."""
    if folder.kind not in (RLMT, RLPT):
        return []
    return thoughts.unscored(samples.last(folder, headline.LEAST_SAMPLES))
