"""Photograph the report of a case for the documentation: ``python benchmarks/draw_report.py case/ docs/images``.

The pages of ``docs`` show the case of one event of ``poisontrace attack --attack badnets --dataset cifar10 --rate 0.01
--seed 0 --events 3``, to whose ``train.npz`` an array ``source`` was added: forty uploaders, of whom one brought 96 %
of the poison. Needs Chromium.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright


def shoot(page: Page, path: Path, top: str, bottom: str) -> None:
    """Photograph the page from the top of one element to the bottom of another."""
    box = page.evaluate(
        "([top, bottom]) => { const [a, b] = [top, bottom].map(n => document.querySelector(n).getBoundingClientRect());"
        " return [a.top + scrollY, b.bottom + scrollY]; }",
        [top, bottom],
    )
    clip = {"x": 130, "y": box[0] - 12, "width": 1020, "height": box[1] - box[0] + 28}
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
    shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(path, optimize=True)


def main() -> None:
    """Take every picture."""
    case, images = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            page.goto((case / "report.html").as_uri())
            if scheme == "light":
                shoot(page, images / "report.png", ".verdict", "#event")
                shoot(page, images / "report-sources.png", "#sources", "#sources tr:nth-child(6)")
                for button in (".confirm >> nth=0", ".confirm >> nth=1", ".confirm >> nth=3", ".clear >> nth=5"):
                    page.click(f"#list {button}")
                shoot(page, images / "report-samples.png", "#samples", "#list li:nth-child(24)")
            else:
                shoot(page, images / "report-map.png", "#map", "#map figure")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
