"""The texts of messages: Jinja2 templates, one per kind of event; the wheel brings templates/messages/.

The first line of a template is the message's title, what follows the empty line its body. Messages are text:
nothing is escaped, and senders are told that it is text, so that nobody's question becomes markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

BODY_CHARS = 1000
"""Meta's Cloud API takes 1024 characters in a template's parameter."""

PACKAGED = Path(__file__).parent / "texts"
CHECKOUT = Path(__file__).parents[3] / "templates" / "messages"


@dataclass(frozen=True)
class Message:
    """What a person is sent. ``key`` is the same when the same message is sent again."""

    title: str
    body: str
    key: str = ""

    @property
    def text(self) -> str:
        """Title and body as one text."""
        return f"{self.title}\n\n{self.body}"


def shortened(text: str, length: int) -> str:
    """Cut a text so that it has this many characters at most, and say so."""
    return text if len(text) <= length else text[: length - 2].rstrip() + " …"


class Texts:
    """The templates, with the time zone in which moments are told."""

    def __init__(self, zone: tzinfo, folder: Path | None = None) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(folder or (PACKAGED if PACKAGED.is_dir() else CHECKOUT)),
            undefined=StrictUndefined,
            autoescape=False,  # noqa: S701 - messages are text
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._zone = zone
        self._environment.filters |= {"shortened": shortened, "when": self.when}

    def when(self, moment: datetime | str) -> str:
        """Tell a moment as people do: Tue 24 Nov, 14:05."""
        at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return f"{at.astimezone(self._zone):%a %d %b, %H:%M}"

    def message(self, kind: str, facts: Mapping[str, Any], key: str = "") -> Message:
        """Write the message of one event."""
        text = self._environment.get_template(f"{kind}.txt.j2").render(facts)
        title, _, body = text.strip().partition("\n")
        return Message(" ".join(title.split()), shortened(body.strip(), BODY_CHARS), key)
