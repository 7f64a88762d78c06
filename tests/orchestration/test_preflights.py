"""The message of a campaign, rendered for real customers and judged before a send."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import dagster as dg
import matplotlib.image
import pytest
from location import Location

from campaigns.checks import CheckResult
from deliverability.preflight import CHECKS
from deliverability.screenshots import BROWSERS, VIEWS
from mailhouse import preview
from mailhouse.console import console
from mailhouse.sending import show_checks
from orchestration.defs.campaigns.assets import CAMPAIGNS
from orchestration.lib.campaign_runs import CheckError, Prepared, prepare


@pytest.fixture
def content(location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the content folder, which the settings name."""
    shutil.copytree(location.settings.content_dir, tmp_path / "content")
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(tmp_path / "content"))
    return tmp_path / "content"


@pytest.fixture
def judged(location: Location) -> Callable[[str], dict[str, CheckResult]]:
    """The checks of a campaign by name, as a dry run has them."""

    def judge(campaign: str) -> dict[str, CheckResult]:
        return {check.name: check for check in dry_run(location, campaign).checks}

    return judge


def dry_run(location: Location, campaign: str) -> Prepared:
    return prepare(location.settings, location.warehouse, campaign, is_dry_run=True)


def with_text(content: Path, text: str, name: str = "win_back.mjml") -> None:
    """Put text before the footer of the template."""
    path = content / "templates" / "win_back.mjml"
    footer = '<mj-include path="./_footer.mjml" />'
    section = f"<mj-section><mj-column>{text}</mj-column></mj-section>"
    path.with_name(name).write_text(path.read_text().replace(footer, section + footer))


def test_what_is_shipped_passes(judged) -> None:
    for campaign in ("win_back", "second_order", "thank_champions"):
        found = judged(campaign)
        assert list(found)[-len(CHECKS) :] == list(CHECKS)
        failed = [check for check in found.values() if check.is_blocking and not check.is_passed]
        assert failed == []
        assert found["size"].metadata["samples"] == 20
        assert 10_000 < found["size"].metadata["html_bytes"] < 102 * 1024
        assert found["links"].metadata["links"] >= 3
        assert found["links"].metadata["is_network_used"] == 0


def test_a_long_template_is_clipped(content: Path, judged) -> None:
    with_text(content, f"<mj-text>{'long ' * 20_000}</mj-text>")
    found = judged("win_back")
    assert not found["size"].is_passed
    assert found["size"].metadata["html_bytes"] > 102 * 1024


def test_links_are_judged_with_what_is_filled_in(content: Path, location: Location, judged) -> None:
    with_text(content, '<mj-button href="https://{{ contact.contact_id }}.shop.local/x">Go</mj-button>')
    assert judged("win_back")["links"].is_passed
    with_text(content, '<mj-image src="{{ contact.contact_id }}.png" alt="x" />')
    found = judged("win_back")["links"]
    assert not found.is_passed and "is relative" in found.message
    with pytest.raises(CheckError, match=r"links: .*is relative"):
        dry_run(location, "win_back").require_passed()


def test_this_machine_is_no_place_to_send_people(
    content: Path, judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_text(content, '<mj-button href="https://staging.shop.local/x">Go</mj-button>')
    monkeypatch.setenv("MAILHOUSE_PROVIDER", "sendgrid")
    monkeypatch.setenv("MAILHOUSE_BASE_URL", "https://mail.shop.com")
    found = judged("win_back")
    assert "only this machine or network knows" in found["links"].message
    assert "MAILHOUSE_PREFLIGHT_NETWORK is off" in found["sender_dns"].message
    # the same where clicks are counted: the link leads through the gateway
    monkeypatch.setenv("MAILHOUSE_TRACK_CLICKS", "marketing")
    assert "'https://staging.shop.local/x' leads to" in judged("win_back")["links"].message


def test_every_translation_is_judged(content: Path, judged) -> None:
    with_text(content, '<mj-button href="/laden">Los</mj-button>', "win_back.de.mjml")
    found = judged("win_back")
    assert "'/laden' is relative" in found["links"].message
    assert found["size"].metadata["samples"] == 40


def test_a_message_that_nobody_could_get_is_not_sent(content: Path, judged) -> None:
    with_text(content, "<mj-text>{{ contact.email | date }}</mj-text>")
    found = judged("win_back")
    assert not found["size"].is_passed
    assert "could be rendered for none of the first 20 contacts" in found["size"].message


def test_a_template_that_is_wrong_is_told_of_once(content: Path, judged) -> None:
    with_text(content, "<mj-text>{{ contact.no_such_thing }}</mj-text>")
    failed = [name for name, check in judged("win_back").items() if not check.is_passed]
    assert failed == ["template_lint"]


def test_spamd_that_is_away_stops_the_send(judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILHOUSE_SPAMD_URL", "tcp://127.0.0.1:1")
    assert "does not answer" in judged("win_back")["spam_score"].message


def test_a_warning_is_shown_and_stops_nothing(
    content: Path, location: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    with_text(content, '<mj-text><div style="display:flex">x</div></mj-text>')
    prepared = dry_run(location, "win_back")
    prepared.require_passed()
    with console.capture() as shown:
        show_checks(prepared)
    row = next(line for line in shown.get().splitlines() if "client_support" in line)
    assert "warning" in row


def test_dagster_shows_the_checks(content: Path, location: Location) -> None:
    with_text(
        content, '<mj-button href="/x">Go</mj-button><mj-text><div style="display:flex">x</div></mj-text>'
    )
    location.instance.add_dynamic_partitions(CAMPAIGNS.name, ["second_order"])
    path = content / "campaigns" / "second_order.yaml"
    path.write_text(path.read_text().replace("template: second_order", "template: win_back"))
    result = location.run("send_campaign", "second_order", must_succeed=False)
    assert not result.success
    failed = {one.check_name: one for one in result.get_asset_check_evaluations() if not one.passed}
    assert {name: one.severity for name, one in failed.items()} == {
        "links": dg.AssetCheckSeverity.ERROR,
        "client_support": dg.AssetCheckSeverity.WARN,
    }
    assert failed["links"].metadata["problems"].value == 1


def test_a_preview_has_pictures_beside_it(location: Location, tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in BROWSERS):
        pytest.skip("Chromium is not here: apt-get install chromium")
    contact = location.warehouse.value("select min(contact_id) from segments.at_risk")
    preview.run("win_back", contact, tmp_path, screenshots=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"win_back-{contact}{end}" for end in (".html", ".txt", *(f"-{view.name}.png" for view in VIEWS))
    }
    light, dark = (
        (tmp_path / f"win_back-{contact}-desktop-{scheme}.png").read_bytes() for scheme in ("light", "dark")
    )
    # but for thin lines nothing of the template stays light where it is meant to be dark, header and footer neither
    for picture, is_light in ((light, True), (dark, False)):
        brightness = matplotlib.image.imread(BytesIO(picture))[..., :3].mean(axis=(1, 2))
        assert ((brightness > 0.5) == is_light).mean() > 0.97


def test_pictures_may_be_somebody_elses(location: Location, tmp_path: Path) -> None:
    class Service:
        def take(self, html: str, views: object = ()) -> dict[str, bytes]:
            return {"outlook": html[:15].encode()}

    contact = location.warehouse.value("select min(contact_id) from segments.at_risk")
    preview.run("win_back", contact, tmp_path, screenshots=Service())
    assert (tmp_path / f"win_back-{contact}-outlook.png").read_bytes().lower() == b"<!doctype html>"
