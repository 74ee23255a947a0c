"""The report in a real browser: nothing complains, nothing is fetched, nothing sticks out, everything can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import MISSING, WIDTHS, browser, chromium, opened, screenshots
from report_runs import (
    HOSTILE,
    document_rows,
    held_out,
    log_of,
    make_gain,
    make_run,
    rlmt_log,
    rlmt_row,
    rlmt_rows,
    rlmt_run,
    short_rows,
    whole_run,
)

from rl_think_ext.report import write

pytestmark = pytest.mark.slow
LONG = "w" * 4000 + " " + "ಕ್ಷ" * 500
# Contrast of two colours as WCAG defines it, of every text in figures, marks and alarms against what lies behind it.
CONTRASTS = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => { for (; node; node = node.parentElement) {
    const found = parse(getComputedStyle(node).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found; } };
  const read = '.plot text, mark.g:not(.n), .alarm li, .calm, .notice, .verdict, .lede, .way, .part, .said, .status';
  const nodes = document.querySelectorAll(read);
  return [...nodes].map(node => {
    const style = getComputedStyle(node), colour = parse(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(node))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), node.className.baseVal ?? node.className, node.textContent.slice(0, 20)]; });
}"""
SIZES = """() => [...document.querySelectorAll('.plot text')].map(
  node => parseFloat(getComputedStyle(node).fontSize) * node.getScreenCTM().a)"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    if chromium() is None:
        pytest.skip(MISSING)  # in CI the reason makes this a failure, see conftest.py
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of everything that a page can hold, by name."""
    root = tmp_path_factory.mktemp("runs")
    one = whole_run(root / "one", measured=held_out())
    documents = {s: document_rows(s, [0.5, -1.5, None, 2.0, 0.05]) + short_rows(s, 0.3) for s in (5, 20)}
    other = whole_run(root / "a-run-with-a-rather-long-name-of-its-own", tables=documents, log=log_of(12))
    hostile = HOSTILE.replace("\ud800", "") + LONG
    rows = [
        r | {"completion": hostile, "rlp/context": hostile + str(i), "rlp/target": hostile}
        for i, r in enumerate(short_rows(5, 0.1))
    ]
    bad = whole_run(
        root / LONG[:100],
        tables={5: rows, 20: [r | {"step": 20} for r in rows]},
        log=[entry | {f"rewards/{hostile}/mean": 0.5} for entry in log_of(20)],
        alarms=[{"step": 5, "alarm": hostile}],
        model=hostile,
        settings={hostile: hostile},
    )
    gain, empty = make_gain(root / "gain"), make_run(root / "empty")
    think, control = rlmt_run(root / "think"), rlmt_run(root / "no-think", thinks=False, log=rlmt_log(9, thinks=False))
    parts = {
        "thought": hostile,
        "answer": hostile,
        "status": hostile,
        "rlmt/unscorable": hostile,
        "completion": hostile,
    }
    worst = rlmt_run(
        root / "worst",
        tables={
            5: rlmt_rows(5, 0.0, bad=5),
            9: [rlmt_row(9, None if i % 2 else 1.0, hostile, **parts) for i in range(99)],
        },
        log=[entry | {f"rlmt/status/{hostile}": 0.5} for entry in rlmt_log(20)],
        settings={"reward_model": hostile, "style": hostile},
    )
    several = {"one": [one], "two": [other, one], "hostile": [bad], "gain": [gain, one], "empty": [empty]}
    several |= {"rlmt": [think], "twins": [think, control], "worst": [worst]}
    return {name: write(folders, root / f"{name}.html") for name, folders in several.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "two", "hostile", "gain", "empty", "rlmt", "twins", "worst"])
def test_page(chrome: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    with opened(chrome, pages[name], width, scheme) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        wanted = set(re.findall(r'<figure id="([^"]+)"', pages[name].read_text(encoding="utf-8")))
        boxes = {
            f.get_attribute("id"): f.query_selector(".plot svg").bounding_box()
            for f in seen.page.query_selector_all("figure")
        }
        assert set(boxes) == wanted and (len(wanted) >= 14) == (name != "empty")
        assert all(box["width"] > 200 and box["height"] > 120 for box in boxes.values())
        assert all(size >= 9 for size in seen.page.evaluate(SIZES))
        contrasts = seen.page.evaluate(CONTRASTS)
        assert [found for found in contrasts if found[0] < 4.5] == []
        assert len(contrasts) > (1 if name == "empty" else 50)
        assert seen.errors == []
        assert seen.requests == [pages[name].resolve().as_uri()]


def test_the_checks_see_what_they_look_for(chrome: Any, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<body style='width:3000px'><img src='nowhere.png'><script>console.error('x'); throw 1</script>")
    with opened(chrome, page, 390) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") > 390
        assert len(seen.errors) >= 2 and len(seen.requests) == 2


def test_screenshots(chrome: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    made = screenshots(pages["one"], tmp_path, found=chrome)
    assert [path.name for path in made] == ["report-390.png", "report-1280.png"]
    assert all(10_000 < path.stat().st_size < 400_000 for path in made)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_committed_pictures_are_whole(width: int) -> None:
    from PIL import Image

    path = Path(__file__).parents[1] / "docs" / "images" / f"report-{width}.png"
    with Image.open(path) as image:
        image.load()
        assert image.width == width and 1000 <= image.height <= 2400
    assert path.stat().st_size < 400_000
