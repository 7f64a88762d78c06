"""`mailhouse trigger check` and `mailhouse preview --event`: templates that name the event."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns.triggers import load_triggers
from mailhouse import preview
from mailhouse.trigger_work import check_files
from senders.settings import SenderSettings
from warehouse.errors import InputError

CART = """<mjml><mj-body><mj-section><mj-column>
<mj-text>{{ event.cart_value | default(0) | money }}</mj-text>
</mj-column></mj-section></mj-body></mjml>"""


@pytest.fixture
def settings(tmp_path: Path) -> SenderSettings:
    content = tmp_path / "content"
    for folder in ("templates", "triggers"):
        (content / folder).mkdir(parents=True)
    (content / "templates" / "cart.mjml").write_text(CART)
    return SenderSettings(home=tmp_path, content_dir=content)


def trigger(settings: SenderSettings, source: str) -> None:
    send = "send: {template: cart, category: transactional, subject: Hi}"
    (settings.content_dir / "triggers" / "cart.yaml").write_text(f"trigger: cart\n{source}\n{send}\n")
    check_files(settings, load_triggers(settings.content_dir))


def test_a_trigger_that_follows_the_clock_has_no_event(settings: SenderSettings) -> None:
    trigger(settings, "event: cart.updated")
    with pytest.raises(InputError) as caught:
        trigger(settings, "becomes: engagement_score < 5")
    assert caught.value.message.startswith(
        "content/templates/cart.mjml:2: {{ event }} is the event that fires a trigger"
    )
    assert "triggers/cart.yaml:3" in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "no object"), ("{", "Expecting"), ('{"propertys": {}}', "'propertys'"), ('{"properties": 1}', "properties"),
     ('{"occurred_at": "soon"}', "soon")],
)  # fmt: skip
def test_an_event_that_is_none(
    settings: SenderSettings, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("MAILHOUSE_HOME", str(settings.home))
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(settings.content_dir))
    with pytest.raises(InputError, match=said):
        preview.run("cart", 1, None, event=text)
