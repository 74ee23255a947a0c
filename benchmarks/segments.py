"""How well and how fast text is cut into sentences: python benchmarks/segments.py [--text FILE.jsonl]

Prints the tables of docs/segments.md (tests/test_segment.py keeps them the same): how many labelled texts are cut
exactly as labelled, by nltk's default (`PunktSentenceTokenizer()`), by our segmenter left at English, and told the
language; precision and recall of the ends inside the texts; and every text that ours still cuts wrong. The texts are
those of tests/segment_labels.jsonl, labelled before the code, and of tests/segment_held_out.jsonl, written after it.
nltk's trained English model is measured as well where it is installed. With --text, the time for the `text` of every
row by nltk's default and by ours, in turns, CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

from rl_think_ext.segment import Segmenter

TESTS = Path(__file__).parents[1] / "tests"
LABELS, HELD_OUT = TESTS / "segment_labels.jsonl", TESTS / "segment_held_out.jsonl"
MARK = "¦"
Spans = list[tuple[int, int]]
Way = Callable[[str, str], Iterable[tuple[int, int]]]


@dataclass(frozen=True)
class Label:
    """A text, what is hard about it, its language, and where its sentences lie."""

    category: str
    language: str
    text: str
    spans: Spans


def labels(path: Path = LABELS) -> list[Label]:
    """The labelled texts; a mark in the file stands behind every sentence but the last."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        spans, start = [], 0
        for piece in row["text"].split(MARK):
            first = start + len(piece) - len(piece.lstrip())
            spans.append((first, first + len(piece.strip())))
            start += len(piece)
        found.append(Label(row["category"], row["language"], row["text"].replace(MARK, ""), spans))
    return found


def ways() -> dict[str, Way]:
    """What is compared: a name, and a function of a text and its language."""
    punkt = PunktSentenceTokenizer()
    return {
        "nltk's default": lambda text, language: punkt.span_tokenize(text),
        "ours, English": lambda text, language: Segmenter()(text),
        "ours, its language": lambda text, language: Segmenter(language)(text),
    }


@dataclass
class Score:
    """What a way got right: texts, and ends inside them."""

    exact: int = 0
    right: int = 0
    wrong: int = 0
    missed: int = 0

    def add(self, wanted: Spans, got: Spans) -> None:
        """Count one text."""
        ends, found = {end for _, end in wanted[:-1]}, {end for _, end in got[:-1]}
        self.exact += wanted == got
        self.right += len(ends & found)
        self.wrong += len(found - ends)
        self.missed += len(ends - found)

    @property
    def precision(self) -> float:
        """Share of the ends found that are labelled."""
        return self.right / (self.right + self.wrong)

    @property
    def recall(self) -> float:
        """Share of the labelled ends that are found."""
        return self.right / (self.right + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def score(way: Way, texts: list[Label]) -> Score:
    """One way on all texts."""
    total = Score()
    for label in texts:
        total.add(label.spans, list(way(label.text, label.language)))
    return total


def accuracy_table(path: Path = LABELS) -> str:
    """Texts cut exactly as labelled, by category, and the ends, as a table of Markdown."""
    texts, found = labels(path), ways()
    lines = [f"| | texts | {' | '.join(found)} |", "|---|---|" + "---|" * len(found)]
    for category in dict.fromkeys(label.category for label in texts):
        some = [label for label in texts if label.category == category]
        lines.append(_row(category, [len(some), *(score(way, some).exact for way in found.values())]))
    totals = [score(way, texts) for way in found.values()]
    lines.append(_row("**all**", [len(texts), *(f"**{t.exact}** ({t.exact / len(texts):.1%})" for t in totals)]))
    ends = sum(len(label.spans) - 1 for label in texts)
    lines.append(_row("ends: precision", [ends, *(f"{t.precision:.3f}" for t in totals)]))
    lines.append(_row("ends: recall", [ends, *(f"{t.recall:.3f}" for t in totals)]))
    lines.append(_row("ends: F1", [ends, *(f"{t.f1:.3f}" for t in totals)]))
    return "\n".join(lines)


def _row(name: str, values: list[object]) -> str:
    return f"| {name} | {' | '.join(map(str, values))} |"


def error_list(path: Path = LABELS) -> str:
    """Every text that our segmenter, told the language, cuts otherwise than labelled, as blocks of text."""
    lines = []
    for label in labels(path):
        got = Segmenter(label.language)(label.text)
        if got != label.spans:
            lines.append(f"{label.language}, {label.category}")
            lines.append(f"  wanted  {_shown(label.text, label.spans)}")
            lines.append(f"  got     {_shown(label.text, got)}")
    return "\n".join(lines)


def _shown(text: str, spans: Spans) -> str:
    return f" {MARK} ".join(text[start:end].replace("\n", "⏎").replace("\t", "⇥") for start, end in spans)


def print_times(path: Path, rounds: int = 5) -> None:
    """CPU seconds for all texts of a file, in turns; the best of each."""
    texts = [str(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").splitlines()]
    punkt, ours = PunktSentenceTokenizer(), Segmenter()
    taken: dict[str, list[float]] = {"nltk's default": [], "ours": []}
    for _ in range(rounds):
        for name, cut in (("nltk's default", lambda text: list(punkt.span_tokenize(text))), ("ours", ours)):
            begin = time.process_time()
            for text in texts:
                cut(text)
            taken[name].append(time.process_time() - begin)
    best = {name: min(times) for name, times in taken.items()}
    print(f"\n{len(texts)} texts, {sum(map(len, texts))} characters; best of {rounds}:")
    print(", ".join(f"{name} {seconds:.3f} s" for name, seconds in best.items()), end="; ")
    print(f"ours takes {best['ours'] / best[next(iter(best))]:.2f} times as long")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a .jsonl file with a column `text`, to measure the time")
    arguments = parser.parse_args()
    for path in (LABELS, HELD_OUT):
        print(f"{path.name}\n\n{accuracy_table(path)}\n\n{error_list(path)}\n")
    try:
        trained = PunktTokenizer("english")
    except LookupError:
        print("nltk's trained English model is not installed: not measured")
    else:
        english = [label for label in labels() if label.language == "en"]
        both = [
            lambda text, language: trained.span_tokenize(text),
            lambda text, language: Segmenter(model="nltk")(text),
        ]
        alone, within = (score(way, english) for way in both)
        print(f"English texts with nltk's trained model: alone {alone.exact}, ours with it {within.exact}, ", end="")
        print(f"ours {score(ways()['ours, English'], english).exact} of {len(english)}")
    if arguments.text:
        print_times(arguments.text)


if __name__ == "__main__":
    main()
