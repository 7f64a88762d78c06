"""Pictures of a message as a browser shows it: on a phone and on a desk, light and dark.

Chromium is told over a pipe (its DevTools protocol): by its command line it is neither as narrow as a phone nor dark.
A browser is no mail program: it shows what mail programs at best make of a message.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from warehouse.errors import MailhouseError

__all__ = ["VIEWS", "ChromiumScreenshots", "ScreenshotError", "Screenshots", "View"]

#: Names that distributions and vendors give the browser.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: Pixels; what is longer is cut off, as the picture must fit into memory.
LONGEST = 12_000
_LONGEST_ANSWER = 256 << 20
# Chromium reads from descriptor 3 and writes to 4. Between fork and exec of this process, which may have threads, no
# Python of ours may run, and not every shell knows descriptors above 9.
_AT_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class ScreenshotError(MailhouseError):
    """No picture could be taken."""


@dataclass(frozen=True)
class View:
    """How a message is looked at.

    Attributes:
        name: ends the file's name.
        width: CSS pixels.
        scheme: what the mail program prefers; the message may follow (`prefers-color-scheme`).
        is_phone: a touch screen with two device pixels for each CSS pixel.
    """

    name: str
    width: int
    scheme: Literal["light", "dark"]
    is_phone: bool = False


VIEWS = (
    View("phone-light", 375, "light", is_phone=True),
    View("phone-dark", 375, "dark", is_phone=True),
    View("desktop-light", 800, "light"),
    View("desktop-dark", 800, "dark"),
)


class Screenshots(Protocol):
    """Something that shows a message: a browser here, or a service that has real mail programs."""

    def take(self, html: str, views: Sequence[View] = VIEWS) -> Mapping[str, bytes]:
        """The message in each view, as PNG, by the view's name; what has mail programs of its own, by theirs.

        Raises:
            ScreenshotError: there is nothing that could show it, or it fails.
        """
        ...


@dataclass(frozen=True)
class ChromiumScreenshots:
    """Headless Chromium of this machine. Scripts do not run.

    Attributes:
        binary: name or path; empty takes the first of `BROWSERS` that is here.
        loads_images: images are loaded from the internet; otherwise nothing is, and their alt text is shown. Chromium
            itself keeps a page like this from addresses of this machine and network.
        options: further ones of its command line, such as `--proxy-server=http://proxy:3128`.
        seconds: limit for all pictures of a message.
    """

    binary: str = ""
    loads_images: bool = False
    options: tuple[str, ...] = ()
    seconds: float = 60.0

    def take(self, html: str, views: Sequence[View] = VIEWS) -> Mapping[str, bytes]:
        """See `Screenshots.take`."""
        with (
            tempfile.TemporaryDirectory(prefix="mailhouse-chromium-", ignore_cleanup_errors=True) as profile,
            self._browser(profile) as page,
        ):
            return {view.name: _picture(page, html, view, is_online=self.loads_images) for view in views}

    @contextmanager
    def _browser(self, profile: str) -> Iterator[_Page]:
        options = [
            self._found(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
            "--no-default-browser-check", "--disable-extensions", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
            "--disable-gpu", "--mute-audio",
        ]  # fmt: skip
        if not self.loads_images:
            # no host has an address, and whatever has one is asked for through a proxy that is not there
            options += [
                "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
                "--proxy-bypass-list=<-loopback>",
            ]  # fmt: skip
        if os.geteuid() == 0:
            # its sandbox refuses to run as root
            options.append("--no-sandbox")
        options += self.options
        their_in, our_out = os.pipe()
        our_in, their_out = os.pipe()
        ours, theirs = [our_in, our_out], [their_in, their_out]
        try:
            process = subprocess.Popen(
                [sys.executable, "-ISc", _AT_3_AND_4, str(their_in), str(their_out), *options, "about:blank"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=theirs,
            )  # fmt: skip
        except OSError as error:
            for descriptor in (*ours, *theirs):
                os.close(descriptor)
            raise ScreenshotError(f"Chromium cannot be started: {error.strerror}.") from None
        for descriptor in theirs:
            os.close(descriptor)
        try:
            yield _Page(our_in, our_out, self.seconds)
        finally:
            for descriptor in ours:
                os.close(descriptor)
            # it ends when its pipe does
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _found(self) -> str:
        for name in (self.binary,) if self.binary else BROWSERS:
            if path := shutil.which(name):
                return path
        raise ScreenshotError(
            f"There is no {self.binary or 'Chromium'} on this machine.",
            fix="Install it: apt-get install chromium.",
        )


class _Page:
    """One page of a browser, told over its pipe: messages in JSON, a zero byte behind each."""

    def __init__(self, incoming: int, outgoing: int, seconds: float) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._until = time.monotonic() + seconds
        self._buffer = bytearray()
        self._number = 0
        self._session = ""
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and wait for its answer."""
        self._number += 1
        self._events.clear()
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._write(json.dumps(command).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ScreenshotError(f"Chromium refuses {method}: {answer['error'].get('message', '')}.")
                return answer["result"]
            self._events.append(answer.get("method", ""))

    def wait(self, event: str) -> None:
        """Wait for an event that the last call has; it may have come before the answer."""
        while event not in self._events:
            self._events.append(self._read().get("method", ""))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._outgoing, data) :]
        except OSError:
            raise self._ended() from None

    def _read(self) -> dict[str, Any]:
        start = 0
        while (end := self._buffer.find(b"\0", start)) < 0:
            start = len(self._buffer)
            ready, _, _ = select.select([self._incoming], [], [], max(0.0, self._until - time.monotonic()))
            if not ready:
                raise ScreenshotError("Chromium did not show the message in time.")
            piece = os.read(self._incoming, 1 << 20)
            if not piece or start > _LONGEST_ANSWER:
                raise self._ended()
            self._buffer += piece
        message = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return message

    @staticmethod
    def _ended() -> ScreenshotError:
        return ScreenshotError(
            "Chromium ended before it showed the message.",
            fix="Look whether it runs at all: chromium --headless --dump-dom about:blank",
        )


def _picture(page: _Page, html: str, view: View, *, is_online: bool) -> bytes:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.call("Network.enable")
    page.call(
        "Network.emulateNetworkConditions",
        offline=not is_online, latency=0, downloadThroughput=-1, uploadThroughput=-1,
    )  # fmt: skip
    page.call(
        "Emulation.setEmulatedMedia",
        media="screen",
        features=[{"name": "prefers-color-scheme", "value": view.scheme}],
    )
    metrics = {"width": view.width, "deviceScaleFactor": 2 if view.is_phone else 1, "mobile": view.is_phone}
    page.call("Emulation.setDeviceMetricsOverride", height=800, **metrics)
    page.call("Page.navigate", url="about:blank")
    page.wait("Page.loadEventFired")
    frame = page.call("Page.getFrameTree")["frameTree"]["frame"]["id"]
    page.call("Page.setDocumentContent", frameId=frame, html=html)
    page.wait("Page.loadEventFired")
    size = page.call("Page.getLayoutMetrics")["cssContentSize"]
    height = max(1, min(LONGEST, int(size["height"])))
    page.call("Emulation.setDeviceMetricsOverride", height=height, **metrics)
    shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
    return base64.b64decode(shot["data"])
