"""The head of a template: YAML between two lines of `---`, before `<mjml>`.

---
subject: Ihr Angebot, {{ contact.first_name | default('wie versprochen') }}
preheader: Nur bis Sonntag
attachments: [terms.pdf, sale.ics]
---
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from senders.merge_tags import TemplateError
from senders.mime import one_line
from senders.mjml import Source
from warehouse.yaml_specs import nearest

_HEAD = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


class FrontMatter(BaseModel):
    """What a template says about itself.

    Attributes:
        subject, preheader: in a translation they win over the campaign's, elsewhere the campaign's win.
        attachments: names of files in `content/attachments`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str = ""
    preheader: str = ""
    attachments: tuple[str, ...] = ()

    @field_validator("subject", "preheader")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if one_line(value) != value.strip():
            raise ValueError("must be one line")
        return value.strip()


def read_front_matter(source: Source) -> tuple[FrontMatter, Source]:
    """The head, and the template with empty lines in its place, so that lines keep their numbers.

    Raises:
        TemplateError: the head cannot be read, or says what it cannot; names file and line.
    """
    found = _HEAD.match(source.text)
    if found is None:
        if source.text.startswith("---"):
            raise TemplateError(f"{source.place(1)}: the head never ends.", fix="End it with a line of ---.")
        return FrontMatter(), source
    rest = Source("\n" * found[0].count("\n") + source.text[found.end() :], source.places)
    try:
        values = YAML(typ="safe", pure=True).load(found[1]) or {}
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise TemplateError(
            f"{source.place(line)}: the head is no YAML: {error.problem}.",
            fix="Put texts with : or {{ in quotes.",
        ) from None
    except YAMLError as error:
        raise TemplateError(f"{source.place(1)}: the head is no YAML: {error}.", fix="Correct it.") from None
    if not isinstance(values, dict):
        raise TemplateError(f"{source.place(1)}: the head has no keys.", fix="Write `key: value`.")
    try:
        return FrontMatter.model_validate(values), rest
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = str(first["loc"][0])
        lines = found[1].split("\n")
        number = next((at for at, line in enumerate(lines) if re.match(rf"{re.escape(key)}\s*:", line)), 0)
        known = sorted(FrontMatter.model_fields)
        fix = nearest(key, known) if key not in known else "Correct it."
        message = "is no key here" if first["type"] == "extra_forbidden" else first["msg"]
        raise TemplateError(f"{source.place(number + 2)}: {key}: {message}.", fix=fix) from None
