"""SpamAssassin's own daemon judges, over TCP and over a unix socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliverability.preflight import Surroundings, preflight
from deliverability.samples import Sample
from deliverability.spamd import Spamd, SpamdError, SpamScore, check_spam
from warehouse.embedded.launcher import free_port
from warehouse.errors import SettingsError

# SpamAssassin's own test text, which is always spam
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


def message(text: str) -> bytes:
    return (
        "From: Shop <shop@example.com>\r\nTo: jo@example.net\r\nSubject: New boots\r\n"
        "Date: Mon, 27 Jun 2011 09:00:00 +0000\r\nMessage-ID: <1@example.com>\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
    ).encode()


@pytest.fixture(scope="module", params=["tcp", "unix"])
def spamd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spamd]:
    binary = shutil.which("spamd", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        pytest.skip("spamd is not here: apt-get install spamd")
    folder = tmp_path_factory.mktemp("spamd")
    if request.param == "tcp":
        port = free_port()
        url, where = f"tcp://127.0.0.1:{port}", ["--listen", f"127.0.0.1:{port}"]
    else:
        # the path of a unix socket has 107 characters at most
        url, where = f"unix://{folder}/s", ["--socketpath", f"{folder}/s"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [binary, "--local", "--nouser-config", "--max-children", "1", "--helper-home-dir", str(folder), *where],
            stdout=output, stderr=output,
        )  # fmt: skip
        try:
            client = Spamd.parse(url)
            for _ in range(600):
                try:
                    client.score(message("ping"))
                    break
                except SpamdError:
                    if server.poll() is not None:
                        pytest.fail(f"spamd ended: {log.read_text()}")
                    time.sleep(0.1)
            yield client
        finally:
            server.terminate()
            server.wait(20)


@pytest.mark.service
def test_an_honest_message_and_a_spam(spamd: Spamd) -> None:
    honest = check_spam([Sample(message("The boots you looked at are back."))], spamd.score)
    assert honest.is_passed and honest.is_blocking
    assert honest.metadata["spamd_threshold"] > 0 and honest.metadata["points"] < 5
    spam = check_spam([Sample(message("Hello")), Sample(message(GTUBE), "de")], spamd.score)
    assert not spam.is_passed
    assert "GTUBE" in str(spam.metadata["rules"]).split(", ")
    assert "in de" in spam.message and "GTUBE" in spam.message


@pytest.mark.service
def test_a_long_message_with_any_bytes_is_judged(spamd: Spamd) -> None:
    score = spamd.score(message("x") + bytes(range(256)) * 800)
    assert isinstance(score.points, float)


@pytest.mark.service
def test_it_is_one_of_the_checks_of_a_message(spamd: Spamd) -> None:
    def judge(where: Surroundings):
        return next(one for one in preflight([Sample(message(GTUBE))], where) if one.name == "spam_score")

    assert not judge(Surroundings(reaches_people=False, spamd=spamd)).is_passed
    assert judge(Surroundings(reaches_people=False, spamd=spamd, spam_limit=5_000.0)).is_passed
    assert "MAILHOUSE_SPAMD_URL" in judge(Surroundings(reaches_people=False)).message


def test_points_at_the_limit_fail() -> None:
    def score(_: bytes) -> SpamScore:
        return SpamScore(5.0, 5.0, ("A", "B"))

    samples = [Sample(b"")]
    assert not check_spam(samples, score, limit=5.0).is_passed
    assert check_spam(samples, score, limit=5.1).is_passed


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:783", "http://127.0.0.1:783", "tcp://", "tcp://host:x", "unix://", "unix://run/x"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(SettingsError, match="MAILHOUSE_SPAMD_URL"):
        Spamd.parse(url)


def test_addresses() -> None:
    assert Spamd.parse("tcp://spam.internal").place == "spam.internal:783"
    assert Spamd.parse("tcp://[::1]:784") == Spamd("::1", 784)
    assert Spamd.parse("unix:///run/spamd.sock").place == "/run/spamd.sock"


def test_nobody_answers(tmp_path: Path) -> None:
    for url in (f"tcp://127.0.0.1:{free_port()}", f"unix://{tmp_path}/none"):
        result = check_spam([Sample(b"x")], Spamd.parse(url).score)
        assert not result.is_passed
        assert "does not answer" in result.message and "MAILHOUSE_SPAMD_URL" in result.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "does not speak its protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak its protocol"),
        (b"SPAMD/1.1 76 Bad header line\r\n\r\n", "refused the message: Bad header line"),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: perhaps\r\n\r\n", "answered without points"),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 6.1", "does not speak its protocol"),
    ],
)
def test_answers_that_are_none(answer: bytes, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(65536):
                    pass
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SpamdError, match=says):
            Spamd("127.0.0.1", server.getsockname()[1]).score(message("x"))
        thread.join()


@given(st.binary(max_size=200))
def test_any_answer_is_an_error_or_a_score(answer: bytes) -> None:
    client = Spamd("127.0.0.1")
    for prefix in (b"", b"SPAMD/1.1 0 EX_OK\r\nSpam: "):
        try:
            client._parse(prefix + answer)
        except SpamdError as error:
            assert "127.0.0.1:783" in error.message
