"""Links are asked for on a real server, and nothing leads into a private network."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deliverability.preflight import Surroundings, preflight
from deliverability.reachability import is_global, reach
from deliverability.samples import Sample


class Pages(BaseHTTPRequestHandler):
    asked: list[tuple[str, str, str]]

    def answer(self) -> None:
        self.asked.append((self.command, self.path, self.headers["Host"]))
        status, location = 200, ""
        if self.path == "/gone":
            status = 404
        elif self.path == "/bots":
            status = 403
        elif self.path == "/broken":
            status = 500
        elif self.path == "/no-head":
            status = 405 if self.command == "HEAD" else 200
        elif self.path.startswith("/to?"):
            status, location = 302, self.path.partition("?")[2]
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Pages.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def here(host: str, port: int) -> list[str]:
    return ["10.0.0.1", "127.0.0.1"] if host == "inside.com" else ["127.0.0.1"]


def asked(server: ThreadingHTTPServer, *paths: str) -> list[str]:
    """What is found of these paths, where the loopback interface passes for the internet."""
    urls = [f"http://shop.com:{server.server_port}{path}" for path in paths]
    found = reach(urls, resolve=here, is_allowed=lambda address: address == "127.0.0.1")
    assert list(found) == urls
    return list(found.values())


def test_answers(server: ThreadingHTTPServer) -> None:
    found = asked(server, "/", "/gone", "/bots", "/no-head", "/broken")
    assert found == ["", "is answered with HTTP status 404", "", "", "is answered with HTTP status 500"]
    assert ("HEAD", "/", f"shop.com:{server.server_port}") in Pages.asked
    assert [call for call in Pages.asked if call[1] == "/"] == [
        ("HEAD", "/", f"shop.com:{server.server_port}")
    ]
    assert [call[0] for call in Pages.asked if call[1] == "/no-head"] == ["HEAD", "GET"]


def test_redirects_are_followed_and_judged_each(server: ThreadingHTTPServer) -> None:
    found = asked(
        server, "/to?/", "/to?/gone", "/to?http://inside.com/secret", "/to?file:///etc/passwd", "/to?//[x"
    )
    assert found[0] == ""
    assert "404" in found[1]
    assert "private network" in found[2]
    assert "redirects to file address" in found[3]
    assert "cannot be reached" in found[4]


def test_a_loop_of_redirects_ends(server: ThreadingHTTPServer) -> None:
    # answers itself: the server is asked for the same path over and over
    found = asked(server, "/to?/to?/to?/to?/to?/to?/to?/to?/")
    assert "redirects more than 5 times" in found[0]


def test_nothing_is_called_on_this_machine(server: ThreadingHTTPServer) -> None:
    urls = [
        f"http://{host}:{server.server_port}/" for host in ("127.0.0.1", "localhost", "[::1]", "2130706433")
    ]
    assert all("private network" in found or "cannot" in found for found in reach(urls).values())
    assert Pages.asked == []


def test_a_name_with_one_private_address_is_refused(server: ThreadingHTTPServer) -> None:
    url = f"http://inside.com:{server.server_port}/"
    assert "private network" in reach([url], resolve=here, is_allowed=lambda one: one == "127.0.0.1")[url]
    assert Pages.asked == []


def test_a_dead_server_and_a_dead_name(server: ThreadingHTTPServer) -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    assert "cannot be reached (OSError)" in reach(["https://shop.com/"], resolve=nowhere)["https://shop.com/"]
    found = reach(["http://shop.com:1/"], resolve=here, is_allowed=lambda _: True)
    assert "cannot be reached (ConnectError)" in found["http://shop.com:1/"]
    assert reach(["http://shop.com/"], altogether=-1.0)["http://shop.com/"] == "does not answer in time"


def test_the_network_is_used_only_where_wanted_and_never_for_our_own_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def reach(urls: Iterable[str]) -> dict[str, str]:
        asked.extend(url for url in urls if not url.startswith("mailto:"))
        return {"https://shop.com/a": "is answered with HTTP status 404"}

    monkeypatch.setattr("deliverability.preflight.reach", reach)
    html = (
        '<a href="https://mail.shop.com/c/x/1/y">a</a><a href="https://mail.shop.com/unsubscribe/x">b</a>'
        '<a href="mailto:us@shop.com">c</a><img src="https://cdn.shop.com/a.png" alt="">'
        '<a href="http://127.0.0.1/x">d</a>'
    )
    sample = Sample(f"Content-Type: text/html\r\n\r\n{html}".encode())
    where = Surroundings(
        reaches_people=False,
        unwrap=lambda url: "https://shop.com/a" if "/c/" in url else None,
        is_own=lambda url: url.startswith("https://mail.shop.com/"),
    )
    preflight([sample], where)
    assert asked == []
    found = preflight([sample], dataclasses.replace(where, uses_network=True))
    assert asked == ["https://shop.com/a", "https://cdn.shop.com/a.png"]
    assert "HTTP status 404" in next(one for one in found if one.name == "links").message


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("93.184.216.34", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.0.0.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False),
        ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:127.0.0.1", False), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_global_addresses(address: str, answer: bool) -> None:
    assert is_global(address) is answer
