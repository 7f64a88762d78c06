"""Litmus, played by a transport that keeps to its contract."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import pytest

from deliverability.litmus import LitmusScreenshots
from deliverability.screenshots import ScreenshotError
from mailhouse import preview
from warehouse.errors import SettingsError

KEY = "a-key-of-litmus"
PNG = b"\x89PNG\r\n\x1a\n"


class Litmus(httpx.BaseTransport):
    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.breaks: dict[str, httpx.Response] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        expected = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
        if request.headers["authorization"] != expected:
            return httpx.Response(401, text=f"no such key: {KEY}")
        path = request.url.path.removeprefix("/v1")
        if path in self.breaks:
            return self.breaks[path]
        if (request.method, path) == ("GET", "/clients"):
            return httpx.Response(200, json=["OL2019", "GMAILNEW"])
        if (request.method, path) == ("POST", "/emails"):
            guid = f"guid-{len(self.messages)}"
            self.messages[guid] = json.loads(request.content)["html_text"]
            return httpx.Response(201, json={"email_guid": guid})
        _, _, guid, _, client, size = path.split("/")
        assert size == "full"
        return httpx.Response(200, content=PNG + f"{client}: {self.messages[guid]}".encode())


def test_each_mail_program_shows_the_message() -> None:
    taken = LitmusScreenshots(KEY, ("OL2019", "GMAILNEW"), transport=Litmus()).take("<p>Hello</p>")
    assert taken == {name: PNG + f"{name}: <p>Hello</p>".encode() for name in ("OL2019", "GMAILNEW")}


@pytest.mark.parametrize(
    ("clients", "message", "fix"),
    [
        (("OL2018",), "Litmus has no mail program 'OL2018'.", "OL2019"),
        ((), "No mail program is named", "GMAILNEW, OL2019"),
    ],
)
def test_a_program_that_litmus_has_not_is_refused_before_anything_is_stored_there(
    clients: tuple[str, ...], message: str, fix: str
) -> None:
    litmus = Litmus()
    with pytest.raises(ScreenshotError) as caught:
        LitmusScreenshots(KEY, clients, transport=litmus).take("<p>Hello</p>")
    assert message in caught.value.message
    assert fix in caught.value.fix
    assert not litmus.messages


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/emails", httpx.Response(500), "Litmus answered POST /emails with 500."),
        ("/emails", httpx.Response(201, json={"id": 1}), "gave it no email_guid"),
        ("/emails", httpx.Response(201, json={"email_guid": "../clients"}), "gave it no email_guid"),
        ("/clients", httpx.Response(200, text="<html>"), "no JSON"),
        ("/clients", httpx.Response(200, json={}), "does not say which"),
        ("/emails/guid-0/previews/OL2019/full", httpx.Response(200, text="<html>"), "for OL2019 is no PNG"),
    ],
)
def test_an_answer_that_is_none_is_said(path: str, answer: httpx.Response, message: str) -> None:
    litmus = Litmus()
    litmus.breaks[path] = answer
    with pytest.raises(ScreenshotError, match=message):
        LitmusScreenshots(KEY, ("OL2019",), transport=litmus).take("<p>Hello</p>")


def test_a_wrong_key_is_named_and_not_shown() -> None:
    screenshots = LitmusScreenshots("wrong", ("OL2019",), transport=Litmus())
    with pytest.raises(ScreenshotError) as caught:
        screenshots.take("<p>Hello</p>")
    assert "MAILHOUSE_LITMUS_KEY" in caught.value.fix
    assert "wrong" not in f"{caught.value} {screenshots!r}"


def test_without_a_key_nothing_is_rendered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAILHOUSE_HOME", str(tmp_path))
    monkeypatch.delenv("MAILHOUSE_LITMUS_KEY", raising=False)
    with pytest.raises(SettingsError, match="MAILHOUSE_LITMUS_KEY is not set"):
        preview.run("win_back", 1, tmp_path, litmus=True)
    assert not list(tmp_path.glob("*.html"))
