"""One line of JSON per event, with the version, for the journal.

What comes from outside (paths, origins) is inside JSON strings, so nobody writes a line of his own into the
log. Queries and header values other than Origin are never logged: they can hold tickets and keys.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import TextIO

from orchestrator import __version__

# What every LogRecord has; anything else on it was handed in as `extra`.
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A record as one JSON object: at, level, event, version, then what the event brought along."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "version": __version__,
        }
        line |= {
            name: value for name, value in vars(record).items() if name not in USUAL and value is not None
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = "".join(traceback.format_exception(*record.exc_info)).strip()
        return json.dumps(line, ensure_ascii=False, default=str)


def install(level: str, stream: TextIO | None = None) -> None:
    """Send what is logged through one handler, to standard error unless told otherwise."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    # Libraries get a word in only when something is wrong: they do not know what is secret here. (uvicorn's
    # lines about WebSockets, for one, carry the whole query.)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("orchestrator").setLevel(level.upper())
