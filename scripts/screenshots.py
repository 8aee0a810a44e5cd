"""Takes pictures of every page of a running platform: `python scripts/screenshots.py URL OUT_DIR [--dark]`.

Visits the fixed pages and, for each kind of record, the first pages that the lists link to, at widths of 1440 and 390
pixels; with `--dark` also in dark mode. Exits with status 1 if a page answers with an error, scrolls sideways, or
writes an error to the browser's console.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {1440: 900, 390: 844}
FIXED = {
    "home": "/",
    "dataset_list": "/datasets/",
    "dataset_upload": "/datasets/new/",
    "model_list": "/models/",
    "model_create": "/models/new/",
    "inference_list": "/inferences/",
    "inference_create": "/inferences/new/",
    "admin": "/admin/",
    "admin_datasets": "/admin/datasets/dataset/",
    "admin_models": "/admin/models_app/segmentationmodel/",
    "admin_inferences": "/admin/inference/inferenceresult/",
}
# Kind of page → the page that links to it, and a pattern of its address.
LINKED = {
    "dataset": ("/datasets/", r"^/datasets/\d+/$"),
    "sample": ("dataset", r"^/datasets/\d+/samples/\d+/$"),
    "model": ("/models/", r"^/models/\d+/$"),
    "inference": ("/inferences/", r"^/inferences/\d+/$"),
    "batch": ("/inferences/", r"^/inferences/batches/\d+/$"),
}
# Pages of a kind that are visited.
MOST = 3
ARGUMENTS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]


def links(page: Page, url: str, pattern: str) -> list[str]:
    """The first different addresses on a page that match the pattern."""
    page.goto(url)
    addresses = page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
    return list(dict.fromkeys(href for href in addresses if re.match(pattern, href)))[:MOST]


def find_pages(browser: Browser, base: str) -> dict[str, str]:
    """Find the pages to visit: name of the picture → path."""
    page = browser.new_page()
    pages = dict(FIXED)
    for kind, (start, pattern) in LINKED.items():
        starts = [start] if start.startswith("/") else [path for name, path in pages.items() if name == start]
        for path in starts:
            for number, href in enumerate(links(page, base + path, pattern)):
                pages[f"{kind}_{number + 1}" if number else kind] = href
    page.close()
    return pages


def listen(page: Page) -> list[str]:
    """A list that collects the errors that the page's scripts and requests write to the console."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    return errors


def take(browser: Browser, base: str, pages: dict[str, str], folder: Path, *, width: int, dark: bool) -> list[str]:
    """Take a picture of each page, and return the problems of the pages."""
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]}, color_scheme="dark" if dark else "light"
    )
    problems: list[str] = []
    for name, path in pages.items():
        page = context.new_page()
        errors = listen(page)
        answer = page.goto(base + path)
        page.evaluate("for (const image of document.querySelectorAll('img[loading=lazy]')) image.loading = 'eager'")
        # Charts, the plan, the first slice of the viewer and pictures further down are drawn after the page has loaded.
        page.wait_for_timeout(1200)
        page.screenshot(path=folder / f"{name}-{width}{'-dark' if dark else ''}.png", full_page=True)
        too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if answer is None or not answer.ok:
            problems.append(f"{path}: status {answer.status if answer else 'none'}")
        if too_wide > 0:
            problems.append(f"{path}: scrolls sideways by {too_wide} pixels at {width}")
        problems += [f"{path}: {text}" for text in errors]
        page.close()
    context.close()
    return problems


def main(base: str, folder: Path, *, dark: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        pages = find_pages(browser, base)
        for width in WIDTHS:
            for is_dark in (False, True) if dark else (False,):
                problems += take(browser, base, pages, folder, width=width, dark=is_dark)
        browser.close()
    for problem in dict.fromkeys(problems):
        print(problem)
    print(f"pages in {folder}: {len(pages)}; problems: {len(set(problems))}")
    return 1 if problems else 0


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--dark"]
    if len(given) != 2:
        sys.exit(__doc__)
    sys.exit(main(given[0].rstrip("/"), Path(given[1]), dark="--dark" in sys.argv))
