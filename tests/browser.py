"""Debian's Chromium through playwright: opens a report as a file and says what is wrong with it; takes pictures.

    python tests/browser.py --screenshots RUN [RUN2] [--output docs/images]

writes report-390.png and report-1280.png (the first 2400 pixels), what README and docs show.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTHS = (390, 1280)
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
MISSING = "no chromium on this machine: `make browser` installs Debian's (as root), or put a chromium on the PATH"
_HEIGHT = 2400


def chromium() -> str | None:
    """The path of the browser, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Opened:
    """A page that is open, and what it has complained about or asked for since."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser without a network of its own.

    Raises:
        RuntimeError: none is installed.
    """
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise RuntimeError(MISSING)
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=ARGUMENTS, headless=True)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def opened(found: Any, path: Path, width: int, scheme: str = "light") -> Iterator[Opened]:
    """A file in a window of this width, with everything that it says and asks for written down."""
    context = found.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, device_scale_factor=1)
    try:
        page = context.new_page()
        seen = Opened(page)
        page.on("console", lambda message: seen.errors.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.errors.append(f"page error: {error}"))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(path.resolve().as_uri(), wait_until="load")
        yield seen
    finally:
        context.close()


def screenshots(report: Path, output: Path, schemes: tuple[str, ...] = ("light",), *, found: Any) -> list[Path]:
    """Pictures of the top of a report at every width, with few colours so that the files stay small."""
    from PIL import Image

    output.mkdir(parents=True, exist_ok=True)
    made = []
    for width in WIDTHS:
        for scheme in schemes:
            path = output / f"report-{width}{'' if scheme == 'light' else '-' + scheme}.png"
            with opened(found, report, width, scheme) as seen:
                height = seen.page.evaluate("document.documentElement.scrollHeight")
                clip = {"x": 0, "y": 0, "width": width, "height": min(height, _HEIGHT)}
                seen.page.screenshot(path=path, clip=clip, full_page=True)
            with Image.open(path) as image:
                small = image.convert("RGB").quantize(256)
            small.save(path, optimize=True)
            made.append(path)
    return made


def main() -> int:
    """Write the report of the named runs and take its pictures; returns the exit status."""
    from tempfile import TemporaryDirectory

    from rl_think_ext.report import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshots", nargs="+", type=Path, required=True, metavar="RUN")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--dark", action="store_true", help="also in dark, as report-WIDTH-dark.png")
    chosen = parser.parse_args()
    schemes = ("light", "dark") if chosen.dark else ("light",)
    with TemporaryDirectory() as folder, browser() as found:
        report = write(chosen.screenshots, Path(folder, "report.html"))
        for path in screenshots(report, chosen.output, schemes, found=found):
            print(f"{path}: {path.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
