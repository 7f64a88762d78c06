"""Chromium takes pictures that are as wide, as long and as dark as they are meant to be, and loads nothing."""

from __future__ import annotations

import shutil
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from deliverability.screenshots import (
    BROWSERS,
    LONGEST,
    VIEWS,
    ChromiumScreenshots,
    ScreenshotError,
    View,
)

needs_chromium = pytest.mark.skipif(
    not any(shutil.which(name) for name in BROWSERS), reason="Chromium is not here: apt-get install chromium"
)

PAGE = """<!doctype html><html><head><meta name="viewport" content="width=device-width"><style>
body {{ margin:0; background:#ffffff }} div {{ height:{height}px; background:#0000ff }}
@media (prefers-color-scheme: dark) {{ body {{ background:#000000 }} }}
@media (max-width: 480px) {{ div {{ background:#ff0000 }} }}
</style></head><body>{more}<div></div><p style="height:100px;margin:0"></p></body></html>"""


def pixels(picture: bytes) -> np.ndarray:
    """Rows of columns of red, green and blue from 0 to 255."""
    return (matplotlib.image.imread(BytesIO(picture))[..., :3] * 255).round().astype(int)


@needs_chromium
def test_each_view_is_what_its_name_says() -> None:
    taken = ChromiumScreenshots().take(PAGE.format(height=1_500, more=""))
    assert list(taken) == [view.name for view in VIEWS]
    for view in VIEWS:
        seen = pixels(taken[view.name])
        scale = 2 if view.is_phone else 1
        assert seen.shape[:2] == (1_600 * scale, view.width * scale)
        assert seen[10, 10].tolist() == ([255, 0, 0] if view.is_phone else [0, 0, 255])
        assert seen[-10, 10].tolist() == ([0, 0, 0] if view.scheme == "dark" else [255, 255, 255])


@needs_chromium
def test_scripts_do_not_run_and_nothing_is_loaded_unless_wanted() -> None:
    asked: list[str] = []

    class Pixel(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    view = [View("narrow", 300, "light")]
    with ThreadingHTTPServer(("127.0.0.1", 0), Pixel) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        more = f'<img src="{address}/a.png" alt="a"><script>document.body.innerHTML = ""</script>'
        html = PAGE.format(height=200, more=more)
        seen = pixels(ChromiumScreenshots().take(html, view)["narrow"])
        assert asked == []
        assert (seen == [255, 0, 0]).all(axis=-1).any()
        ChromiumScreenshots(loads_images=True).take(html, view)
        assert asked == []  # this machine is not the internet
        local = ("--disable-features=LocalNetworkAccessChecks",)
        ChromiumScreenshots(loads_images=True, options=local).take(html, view)
        assert asked == ["/a.png"]
        asked.clear()
        ChromiumScreenshots(options=local).take(html, view)
        assert asked == []
        server.shutdown()
        thread.join()


@needs_chromium
def test_a_page_without_end_is_cut() -> None:
    picture = ChromiumScreenshots().take(PAGE.format(height=50_000, more=""), [View("x", 100, "light")])["x"]
    assert struct.unpack(">II", picture[16:24]) == (100, LONGEST)


def test_no_browser() -> None:
    with pytest.raises(ScreenshotError, match="no-such-browser"):
        ChromiumScreenshots(binary="no-such-browser").take("<p>x</p>")


@pytest.mark.parametrize(("command", "says"), [("exit 1", "ended before"), ("exec sleep 30", "in time")])
def test_a_browser_that_ends_or_hangs(tmp_path: Path, command: str, says: str) -> None:
    binary = tmp_path / "browser"
    binary.write_text(f"#!/bin/sh\n{command}\n")
    binary.chmod(0o755)
    with pytest.raises(ScreenshotError, match=says):
        ChromiumScreenshots(binary=str(binary), seconds=0.5).take("<p>x</p>")
