"""A real Apache Superset for tests: installed once into a cache folder, started on SQLite, filled over its own API."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "superset-requirements.txt"
USER, PASSWORD = "admin", "admin"
_INSTALL_SECONDS = 600
_CONFIG = """
SECRET_KEY = "tests only, on a loopback port, and gone afterwards"
SQLALCHEMY_DATABASE_URI = "sqlite:///{database}?check_same_thread=false"
WTF_CSRF_ENABLED = False
TALISMAN_ENABLED = False
RATELIMIT_ENABLED = False
"""


class NotInstalledError(Exception):
    """Superset cannot be installed here; the message has the reason and the command to try."""


def cache_folder() -> Path:
    """Folder that outlives test runs, one for each set of requirements."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return base / "mailhouse" / f"superset-{digest}"


def install() -> Path:
    """Superset's Python; makes the environment if it is not there.

    Raises:
        NotInstalledError: the package index does not answer, or a package does not install.
    """
    folder = cache_folder()
    python = folder / "venv" / "bin" / "python"
    ready = folder / "ready"
    if ready.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    install_command = (
        [uv, "pip", "install", "--quiet", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install", "--quiet"]
    )
    for command in (
        [sys.executable, "-m", "venv", str(python.parent.parent)],
        [*install_command, "-r", str(REQUIREMENTS)],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-3:]
            raise NotInstalledError(
                f"Superset cannot be installed: {' '.join(said)} Try: {' '.join(command)}"
            ) from None
    ready.touch()
    return python


class Superset:
    """A running Superset.

    Attributes:
        url: where it answers.
        python: its Python, which has Playwright.
        api: a client that is logged in as an administrator.
    """

    def __init__(self, url: str, python: Path) -> None:
        self.url = url
        self.python = python
        self.api = httpx.Client(base_url=url, timeout=120)
        login = {"username": USER, "password": PASSWORD, "provider": "db", "refresh": True}
        token = self.api.post("/api/v1/security/login", json=login).raise_for_status().json()["access_token"]
        self.api.headers["Authorization"] = f"Bearer {token}"

    def import_bundle(self, bundle: Path, *, password: str, kind: str = "dashboard") -> None:
        """Import a bundle of dashboards or assets, with the password of its database."""
        field = "formData" if kind == "dashboard" else "bundle"
        answer = self.api.post(
            f"/api/v1/{kind}/import/",
            files={field: (bundle.name, bundle.read_bytes(), "application/zip")},
            data={"passwords": json.dumps({"databases/Mailhouse.yaml": password}), "overwrite": "true"},
        )
        assert answer.status_code == 200, answer.text

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Every dashboard, chart or dataset, as its list shows it."""
        answer = self.api.get(f"/api/v1/{kind}/", params={"q": "(page_size:500)"})
        return answer.raise_for_status().json()["result"]

    def look(self, chromium: str, slugs: Sequence[str], folder: Path) -> dict[str, Any]:
        """Open dashboards in a browser; see `photograph.py`."""
        done = subprocess.run(
            [
                str(self.python),
                str(HERE / "photograph.py"),
                *(chromium, self.url, USER, PASSWORD, str(folder), *slugs),
            ],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3_000:]
        return json.loads(done.stdout)


@contextmanager
def running(python: Path, folder: Path, port: int) -> Iterator[Superset]:
    """Start Superset with an empty database in `folder`; stops it in the end."""
    environment = _environment(folder, folder / "superset.db")
    shutil.copy(_prepared_database(python), folder / "superset.db")
    log = folder / "superset.log"
    command = [
        str(python.parent / "gunicorn"),
        *("--workers", "1", "--worker-class", "gthread", "--threads", "8", "--timeout", "120"),
        *("--bind", f"127.0.0.1:{port}", "superset.app:create_app()"),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, server, log)
        superset = Superset(url, python)
        try:
            yield superset
        finally:
            superset.api.close()
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _prepared_database(python: Path) -> Path:
    """Superset's own tables and an administrator, made once: its migrations take a minute."""
    prepared = cache_folder() / "prepared.db"
    if prepared.exists():
        return prepared
    folder = cache_folder() / "preparing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    database = folder / "superset.db"
    environment = _environment(folder, database)
    admin = ("--username", USER, "--password", PASSWORD, "--firstname", "A", "--lastname", "B")
    for arguments in (
        ["db", "upgrade"],
        ["fab", "create-admin", *admin, "--email", "admin@example.com"],
        ["init"],
    ):
        done = subprocess.run(
            [str(python.parent / "superset"), *arguments],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3_000:]
    return database.rename(prepared)


def _environment(folder: Path, database: Path) -> dict[str, str]:
    config = folder / "superset_config.py"
    config.write_text(_CONFIG.format(database=database))
    # nothing of ours: Mailhouse's settings and Python's are not Superset's
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {
        **kept,
        "SUPERSET_CONFIG_PATH": str(config),
        "SUPERSET_HOME": str(folder),
        "FLASK_APP": "superset",
    }


def _wait_until_it_answers(
    url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 180
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3_000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"Superset did not answer: {log.read_text()[-3_000:]}")
