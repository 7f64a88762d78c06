"""Opens dashboards in headless Chromium as a person would, keeps a picture of each, and tells what every chart got.

Run by Superset's own Python, which has Playwright: `photograph.py CHROMIUM URL USER PASSWORD FOLDER SLUG...`. Prints a
JSON object: slug -> `answers` (status and rows of each chart's query, as the page sent it) and `errors` on the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# in Superset's environment, not in ours
from playwright.sync_api import Page, Response, sync_playwright  # pyright: ignore[reportMissingImports]

WIDTH = 1400
SETTLED = """() => document.querySelectorAll('.loading, [data-test="loading-indicator"]').length === 0
    && document.querySelectorAll('[data-test="dashboard-component-chart-holder"]').length > 0"""


def main(chromium: str, url: str, user: str, password: str, folder: Path, slugs: list[str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{url}/login/")
        page.fill("#username", user)
        page.fill("#password", password)
        page.click('[data-test="login-button"], button[type=submit], input[type=submit]')
        page.wait_for_url(lambda address: "/login" not in address)
        for slug in slugs:
            seen[slug] = look(page, f"{url}/superset/dashboard/{slug}/?standalone=1", folder / f"{slug}.png")
        browser.close()
    return seen


def look(page: Page, address: str, picture: Path) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []

    def note(response: Response) -> None:
        if "/api/v1/chart/data" in response.url:
            rows = response.json()["result"][0].get("rowcount") if response.ok else response.text()[:500]
            answers.append({"status": response.status, "rows": rows})

    # charts load when they come into view: a window that holds all of them
    page.set_viewport_size({"width": WIDTH, "height": 2600})
    page.on("response", note)
    page.goto(address)
    page.wait_for_selector('[data-test="dashboard-component-chart-holder"]')
    page.wait_for_load_state("networkidle")
    page.wait_for_function(SETTLED)
    page.wait_for_timeout(1_500)
    page.remove_listener("response", note)
    bottom = page.evaluate(
        """() => Math.max(...[...document.querySelectorAll('.grid-row, .dragdroppable-row')]
            .map(row => row.getBoundingClientRect().bottom))"""
    )
    page.set_viewport_size({"width": WIDTH, "height": int(bottom) + 30})
    page.wait_for_timeout(1_000)
    page.screenshot(path=str(picture))
    errors = page.locator(
        '.ant-alert-error, [data-test="error-container"], .ant-empty, .missing-chart'
    ).all_inner_texts()
    return {"answers": answers, "errors": errors}


if __name__ == "__main__":
    browser_path, address, user, password, folder, *slugs = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    json.dump(main(browser_path, address, user, password, Path(folder), slugs), sys.stdout, indent=1)
