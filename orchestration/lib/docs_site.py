"""`make docs`: the models' documentation as one page that needs no server and no network.

dbt's own site says what every model and column means, how they hang together and who reads them. Types and columns come
from a warehouse, so the project is built on an embedded engine of its own, on raw tables without a row, which is thrown
away afterwards: the page holds no data and no address of a warehouse, and any clone can make it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from orchestration.lib.dbt_runs import ModelsError, invoke
from warehouse.client import Warehouse
from warehouse.embedded.launcher import free_port, start
from warehouse.errors import MailhouseError
from warehouse.schema import migrate
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

OUTPUT = PROJECT_ROOT / ".mailhouse" / "docs"
# dbt's page cuts a column's description after two words
_STYLE = """<style>
tr.column-row > td:nth-child(3) { white-space: normal !important; max-width: none !important; min-width: 20em; }
</style></head>"""
_ELSEWHERE = re.compile(r"""<(?:script|link)\b[^>]*\b(?:src|href)\s*=\s*["']?(?:https?:)?//""", re.IGNORECASE)


def build(output: Path = OUTPUT) -> Path:
    """Write `index.html` into `output`; returns its path.

    Raises:
        MailhouseError: the engine did not start, or a model did not build.
    """
    with tempfile.TemporaryDirectory(prefix="mailhouse-docs-") as folder:
        # none of the environment's settings: it may name a real warehouse
        settings = MailhouseSettings.model_construct(home=Path(folder), warehouse_port=free_port())
        target = Path(folder) / "target"
        with start(settings):
            with Warehouse.connect(settings, comment="mailhouse docs") as warehouse:
                migrate(warehouse)
            invoke(["build", "--exclude-resource-type", "test", "unit_test"], settings, target=target)
            invoke(["docs", "generate", "--static", "--no-compile"], settings, target=target)
        page = (target / "static_index.html").read_text(encoding="utf-8")
    if found := _ELSEWHERE.search(page):
        raise ModelsError(
            f"dbt's page would load something from another host: {found.group()}",
            fix="Install dbt-core as pinned in pyproject.toml.",
        )
    page = page.replace("</head>", _STYLE, 1)
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "index.html.part"
    partial.write_text(page, encoding="utf-8")
    return partial.rename(output / "index.html")


def main() -> int:
    """Build the site, say where it is; exit code 2 with the reason if it cannot be built."""
    try:
        page = build()
    except MailhouseError as error:
        print(f"error: {error}\n{error.fix}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"Open {page} in a browser.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
