"""Previews: what a contact would get, with links that lead nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestration.lib.previews import render_preview
from senders.settings import SenderSettings
from warehouse.errors import InputError

TEMPLATE = """<mjml><mj-body><mj-section><mj-column>
<mj-text>{{ contact.first_name }}: {% for product in recommendations %}{{ product.name }}{% endfor %}</mj-text>
<mj-text>{{ company_name }}, {{ postal_address }} <a href="{{ unsubscribe_url }}">Unsubscribe</a></mj-text>
</mj-column></mj-section></mj-body></mjml>"""


class Marts:
    """One contact with one recommendation, for whoever asks."""

    def __init__(self, first_name: str | None) -> None:
        self.first_name = first_name

    def frame(self, query: str, parameters: dict[str, Any]) -> pl.DataFrame:
        if "contact_profiles" in query:
            assert parameters["contact_id"] == 7
            profile = {"contact_id": [7], "email": ["ann@example.org"], "first_name": [self.first_name]}
            return pl.DataFrame(profile, schema_overrides={"first_name": pl.String})
        fields = ("product_id", "name", "price", "image_url", "url", "reason")
        return pl.DataFrame([dict.fromkeys(fields, "") | {"name": "Lamp & shade"}])


@pytest.fixture
def settings(tmp_path: Path) -> SenderSettings:
    folder = tmp_path / "content" / "templates"
    folder.mkdir(parents=True)
    (folder / "offer.mjml").write_text(TEMPLATE)
    return SenderSettings(home=tmp_path, content_dir=tmp_path / "content", postal_address="")


def test_a_preview_shows_the_message_and_signs_nothing(settings: SenderSettings) -> None:
    made = render_preview(settings, Marts("Ann"), 7, template="offer")  # pyright: ignore[reportArgumentType]
    assert "Ann: Lamp &amp; shade" in made.html
    assert "(postal address not set)" in made.text
    assert f"{settings.base_url}/preview" in made.html
    assert not (settings.home / "secret_key").exists()


def test_what_is_missing_is_named(settings: SenderSettings) -> None:
    with pytest.raises(InputError, match="'first_name' is empty for this contact"):
        render_preview(settings, Marts(None), 7, template="offer")  # pyright: ignore[reportArgumentType]


def test_a_preview_of_what_a_trigger_sends_takes_an_event(settings: SenderSettings) -> None:
    cart = TEMPLATE.replace("{{ contact.first_name }}", "{{ event.cart.value | money }}")
    (settings.content_dir / "templates" / "cart.mjml").write_text(cart)
    given = {"type": "cart.updated", "properties": {"cart": {"value": 12.5}}}
    made = render_preview(settings, Marts("Ann"), 7, template="cart", event=given)  # pyright: ignore[reportArgumentType]
    assert "£12.50: Lamp" in made.html
    with pytest.raises(InputError, match="'cart' does not exist") as caught:
        render_preview(settings, Marts("Ann"), 7, template="cart")  # pyright: ignore[reportArgumentType]
    assert "--event" in caught.value.fix
