"""Settings: what is misspelt or malformed is an error that names the variable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from warehouse.errors import SettingsError
from warehouse.settings import MailhouseSettings, WarehouseAddress, check_environment


def test_a_misspelt_variable_is_named_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="MAILHOUSE_WAREHOUSE_PROT is no setting") as caught:
        check_environment([MailhouseSettings], {"MAILHOUSE_WAREHOUSE_PROT": "1", "PATH": "/bin"})
    assert "Did you mean MAILHOUSE_WAREHOUSE_PORT?" in caught.value.fix
    with pytest.raises(SettingsError) as caught:
        check_environment([MailhouseSettings], {"MAILHOUSE_XYZZY": "1"})
    assert "MAILHOUSE_HOME" in caught.value.fix
    check_environment(
        [MailhouseSettings], {"MAILHOUSE_HOME": "x", "MAILHOUSE_WAREHOUSE_PASSWORD": "y", "OTHER": "z"}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAILHOUSE_WAREHOUSE_PORT", "many"),
        ("MAILHOUSE_CLOCK_OFFSET", "yesterday"),
        ("MAILHOUSE_WAREHOUSE_READERS", '{"a": ["secret"]}'),
    ],
)
def test_a_value_that_does_not_parse_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        MailhouseSettings.load()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["clickhouse:9000", "ftp://host", "http://", "http://host:port", "http://[::1"]
)
def test_a_bad_url_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_URL", url)
    settings = MailhouseSettings.load()
    with pytest.raises(SettingsError, match="MAILHOUSE_WAREHOUSE_URL") as caught:
        _ = settings.warehouse
    assert "http://user:password@host:8123" in caught.value.fix


def test_urls_are_read() -> None:
    address = WarehouseAddress.parse("https://ann:p%40ss%2Fword@ch.example:8444")
    assert (address.scheme, address.host, address.port, address.user, address.password) == (
        "https", "ch.example", 8444, "ann", "p@ss/word",
    )  # fmt: skip
    assert WarehouseAddress.parse("http://h").port == 8123
    assert WarehouseAddress.parse("https://h").port == 8443
    assert "p@ss" not in repr(address) and "p%40" not in address.url


def test_the_embedded_password_is_for_server_and_client_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MailhouseSettings.load().warehouse.password == ""
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_PASSWORD", "s3cret")
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_READERS", '{"grafana": "r3ader"}')
    settings = MailhouseSettings.load()
    assert settings.is_embedded and settings.warehouse.password == "s3cret"
    assert settings.warehouse_readers["grafana"].get_secret_value() == "r3ader"
    assert "s3cret" not in repr(settings) and "r3ader" not in repr(settings)


def test_the_clock_can_be_moved() -> None:
    settings = MailhouseSettings(clock_offset=-3600.0)
    assert abs(datetime.now(UTC) - timedelta(hours=1) - settings.now()) < timedelta(seconds=5)
    assert settings.now().microsecond % 1000 == 0
