"""The settings of one line, read once from the environment.

On a host that is ``/etc/hotline/hotline.env`` and the secrets of the unit.

A wrong setting ends the program with one sentence per variable: what it is, what it should be, and which
Ansible variable mends it. Values are repeated in that sentence, except those of secrets.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apprise import Apprise
from pydantic import AfterValidator, BeforeValidator, Field, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.storage import database

# Apprise logs the URLs that it does not understand, tokens and all. What it has to say, senders.py catches.
logging.getLogger("apprise").propagate = False

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
DEFAULT_PORTS = {"http": 80, "https": 443}


class SettingsError(Exception):
    """The environment does not describe a line; the text is one line and names each variable and its mend."""


def parts_of(value: object) -> object:
    """Split ``a, b`` into its parts; lists travel through an environment file as one line."""
    if isinstance(value, str):
        return [part for part in re.split(r"[,\s]+", value) if part]
    return value


def host_of(value: str) -> str:
    """Return a host as a browser writes it: lower case, no final dot, IPv6 shortened and without brackets."""
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return ipaddress.ip_address(bare).compressed
    except ValueError:
        pass
    if not HOST_NAME.fullmatch(bare):
        raise ValueError("must be a host name or an address")
    return bare.lower().rstrip(".")


def url_of(value: str) -> str:
    """Accept ``http(s)://HOST[:PORT]`` and nothing behind it; return it without a final slash."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("must be a URL such as https://line.example.org:8998") from None
    beyond = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or port == 0 or beyond:
        raise ValueError("must be a URL such as https://line.example.org:8998, without path, query or user")
    host_of(parts.hostname)
    return value.rstrip("/")


def database_of(value: SecretStr) -> SecretStr:
    """Accept what storage.py can open; without repeating it, since it may hold a password."""
    database(value.get_secret_value())
    return value


def token_of(value: SecretStr) -> SecretStr:
    """Accept a token of 32 characters or more that a header can carry; nothing is no token."""
    text = value.get_secret_value()
    if text and not re.fullmatch(r"[A-Za-z0-9._~+/=-]{32,200}", text):
        raise ValueError("must be 32 to 200 letters, digits and ._~+/=-")
    return value


def phone_of(value: str) -> str:
    """Accept a telephone number in E.164, or nothing (https://www.itu.int/rec/T-REC-E.164)."""
    if value and not re.fullmatch(r"\+[1-9][0-9]{6,14}", value):
        raise ValueError("must be a number with its country code and nothing else, such as +491701234567")
    return value


def services_of(value: SecretStr) -> SecretStr:
    """Accept URLs that Apprise understands; without repeating them, since they hold tokens."""
    for number, url in enumerate(value.get_secret_value().split(), 1):
        if Apprise.instantiate(url, suppress_exceptions=True) is None:
            raise ValueError(f"number {number} of the URLs is none that Apprise understands")
    return value


def zone_of(value: str) -> str:
    """Accept the name of a time zone."""
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be the name of a time zone, such as Europe/Berlin") from None
    return value


def hours_of(value: str) -> str:
    """Accept a part of the day such as 22:00-07:00, or nothing."""
    if value and not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]", value):
        raise ValueError("must be a part of the day such as 22:00-07:00")
    return value


def gateway_of(value: str) -> str:
    """Accept OpenClaw's gateway on this machine: its token is full power over the node and stays on it."""
    parts = urlsplit(url_of(value))
    try:
        here = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        here = False
    if not here:
        raise ValueError("must be on this machine, such as http://127.0.0.1:18789")
    return value.rstrip("/")


Port = Annotated[int, Field(ge=1, le=65535)]
Names = Annotated[tuple[Annotated[str, AfterValidator(host_of)], ...], NoDecode, BeforeValidator(parts_of)]
Engines = Annotated[
    tuple[Annotated[int, Field(ge=0, le=63)], ...], Field(min_length=1), NoDecode, BeforeValidator(parts_of)
]


class Settings(BaseSettings):
    """What one line is. Names are those of the environment, in small letters.

    ``ansible`` is the variable that renders a setting, if one does; the sentence about a wrong one names it.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    moshi_url: Annotated[str, AfterValidator(url_of)] = Field(
        description="the public URL of the line, used in every link",
        json_schema_extra={"ansible": "line_url"},
    )
    line_access: Literal["open", "links"] = Field(
        default="links",
        description="who may speak: links, who was sent one; or open, everybody who reaches the line",
        json_schema_extra={"ansible": "line_access"},
    )
    line_names: Names = Field(
        default=(),
        description="further names and addresses under which callers open the page, separated by commas",
        json_schema_extra={"ansible": "line_names"},
    )
    line_port: Port = Field(
        default=8998,
        description="the public port, nginx's",
        json_schema_extra={"ansible": "line_port"},
    )
    line_orchestrator_port: Port = Field(
        default=5000,
        description="the port on 127.0.0.1 on which this program answers",
        json_schema_extra={"ansible": "line_orchestrator_port"},
    )
    line_engines: Engines = Field(
        default=(0,),
        description="the numbers of the engines, one per GPU, separated by commas",
        json_schema_extra={"ansible": ""},
    )
    line_engine_port: Annotated[int, Field(ge=1, le=65535 - 63)] = Field(
        default=8999,
        description="engine N listens on 127.0.0.1, on this port plus N",
        json_schema_extra={"ansible": "line_engine_port"},
    )
    tls_provider: str = Field(
        default="ownca",
        description="none: nginx speaks plain http, because a gateway before it ends TLS",
        json_schema_extra={"ansible": "tls_provider"},
    )
    line_status_port: Annotated[int, Field(ge=1, le=65535 - 63)] = Field(
        default=9299,
        description="engine N, if it is duplex, tells about itself on 127.0.0.1, on this port plus N",
        json_schema_extra={"ansible": "line_status_port"},
    )
    moshi_engine: Literal["moshi_server", "duplex"] = Field(
        default="moshi_server",
        description="which program the engines are",
        json_schema_extra={"ansible": "moshi_engine"},
    )
    moshi_device: Literal["cuda", "cpu"] = Field(
        default="cuda",
        description="what the engines run on: cuda or cpu",
        json_schema_extra={"ansible": "moshi_device"},
    )
    max_moshi_failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3,
        description="failures within five minutes after which an engine stays stopped",
        json_schema_extra={"ansible": "moshi_max_failures"},
    )
    database_url: Annotated[SecretStr, AfterValidator(database_of)] = Field(
        default=SecretStr("sqlite:////var/lib/hotline/orchestrator/hotline.db"),
        description="the database: sqlite:////path or postgresql://user:password@host/name",
        json_schema_extra={"ansible": "orchestrator_database_url"},
    )
    orchestrator_operator_token: Annotated[SecretStr, AfterValidator(token_of)] = Field(
        default=SecretStr(""),
        description="the operator's bearer token; without one nothing of the operator's is open",
        json_schema_extra={"ansible": "orchestrator_tokens_generation"},
    )
    orchestrator_agent_token: Annotated[SecretStr, AfterValidator(token_of)] = Field(
        default=SecretStr(""),
        description="the agents' bearer token; without one nothing of theirs is open",
        json_schema_extra={"ansible": "orchestrator_tokens_generation"},
    )
    whatsapp_phone: Annotated[str, AfterValidator(phone_of)] = Field(
        default="",
        description="the person's WhatsApp number, with country code",
        json_schema_extra={"ansible": "orchestrator_whatsapp_phone"},
    )
    notify_urls: Annotated[SecretStr, AfterValidator(services_of)] = Field(
        default=SecretStr(""),
        description="services that reach the person, as Apprise URLs separated by spaces, in order",
        json_schema_extra={"ansible": "orchestrator_notify_urls"},
    )
    notify_on_question: bool = Field(
        default=True,
        description="whether the person is told that a question waits",
        json_schema_extra={"ansible": "orchestrator_notify_on_question"},
    )
    notify_on_complete: bool = Field(
        default=True,
        description="whether the person is told that a task has ended",
        json_schema_extra={"ansible": "orchestrator_notify_on_complete"},
    )
    notify_reminder_minutes: Annotated[int, Field(ge=0, le=10080)] = Field(
        default=60,
        description="after how many minutes the person is reminded of a question; 0 is never",
        json_schema_extra={"ansible": "orchestrator_notify_reminder_minutes"},
    )
    notify_reminders: Annotated[int, Field(ge=0, le=50)] = Field(
        default=3,
        description="how often the person is reminded of one question at most",
        json_schema_extra={"ansible": "orchestrator_notify_reminders"},
    )
    notify_quiet_hours: Annotated[str, AfterValidator(hours_of)] = Field(
        default="",
        description="when messages wait, in the line's time zone, such as 22:00-07:00",
        json_schema_extra={"ansible": "orchestrator_notify_quiet_hours"},
    )
    tz: Annotated[str, AfterValidator(zone_of)] = Field(
        default="UTC",
        description="the time zone of quiet hours and of moments in messages",
        json_schema_extra={"ansible": "line_timezone"},
    )
    execution_timeout_minutes: Annotated[int, Field(ge=1, le=525600)] = Field(
        default=10080,
        description="how long a question, and a task that asks, waits for its answer",
        json_schema_extra={"ansible": "orchestrator_execution_timeout_minutes"},
    )
    agent_socket: str = Field(
        default="",
        description="the socket behind which systemd runs the agent's program; without one there is none",
        json_schema_extra={"ansible": "orchestrator_agent_command"},
    )
    moltbot_url: Annotated[str, AfterValidator(gateway_of)] = Field(
        default="http://127.0.0.1:18789",
        description="OpenClaw's gateway, on this machine",
        json_schema_extra={"ansible": "moltbot_port"},
    )
    moltbot_token: SecretStr = Field(
        default=SecretStr(""),
        description="the gateway's token; without one OpenClaw is not used",
        json_schema_extra={"ansible": "moltbot_enabled"},
    )
    moltbot_agent: bool = Field(
        default=True,
        description="whether OpenClaw carries out instructions; without a model it only brings messages",
        json_schema_extra={"ansible": "moltbot_model"},
    )
    transcript_retention_days: Annotated[int, Field(ge=0, le=3650)] = Field(
        default=30,
        description="days after which a call and what was said in it are forgotten; 0 keeps no words at all",
        json_schema_extra={"ansible": "orchestrator_transcript_retention_days"},
    )
    queue_patience_s: Annotated[int, Field(ge=10, le=86400)] = Field(
        default=1800,
        description="seconds after which somebody who waits for a free conversation is sent away",
        json_schema_extra={"ansible": "orchestrator_queue_patience_s"},
    )
    moshi_voice: str = Field(
        default="moshiko",
        description="the voice, for the records of calls",
        json_schema_extra={"ansible": "moshi_voice"},
    )
    orchestrator_docs: bool = Field(
        default=False,
        description="whether /docs describes the interface; off where strangers can read it",
        json_schema_extra={"ansible": "orchestrator_docs"},
    )
    orchestrator_log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="the least weight of what is logged",
        json_schema_extra={"ansible": "orchestrator_log_level"},
    )

    def engine_ports(self) -> dict[int, int]:
        """Return the loopback port of every engine by its number."""
        return {engine: self.line_engine_port + engine for engine in self.line_engines}


def is_secret(field: FieldInfo) -> bool:
    """Say whether a setting's value must not be repeated anywhere."""
    return field.annotation in (SecretStr, SecretBytes)


def sentence_of(name: str, message: str, given: object) -> str:
    """Say what is wrong with one variable, and which Ansible variable mends it."""
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{name.upper()}: {message}"
    extra = field.json_schema_extra
    variable = extra.get("ansible", "") if isinstance(extra, dict) else ""
    wrong = "is missing" if given is None else f"is {given!r:.80}"
    if is_secret(field):
        wrong = "is missing" if given is None else "is not acceptable (its value is not shown)"
    mend = f"Mend: {f'set {variable} and ' if variable else ''}run site.yml again"
    return (
        f"{name.upper()} {wrong} ({field.description}){f': {message}' if given is not None else ''}. {mend}"
    )


OLD_PREFIX = "PERSONAPLEX_"
OLD_NAMES = {
    "PERSONAPLEX_TEXT_PROMPT": "is gone: Moshi takes no text prompt; the context is shown to the caller",
    "PERSONAPLEX_CPU_OFFLOAD": "is gone: with little GPU memory, set MOSHI_QUANTIZATION to q8",
    "PERSONAPLEX_VOICE": "is MOSHI_VOICE now, moshiko or moshika (moshi_voice)",
    "PERSONAPLEX_VOICE_PROMPT": "is MOSHI_VOICE now, moshiko or moshika (moshi_voice)",
    "PERSONAPLEX_MAX_FAILURES": "is MAX_MOSHI_FAILURES now (moshi_max_failures)",
}


def old_names(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for every setting of the older system, with its new name."""
    return [
        f"{name} {OLD_NAMES.get(name, f'is MOSHI_{name.removeprefix(OLD_PREFIX)} now, if there is one')}. "
        "Mend: take the old name out and run site.yml again"
        for name in sorted(environment)
        if name.startswith(OLD_PREFIX)
    ]


def read_settings() -> Settings:
    """Read the environment.

    Raises SettingsError, with everything that is wrong in one line.
    """
    if old := old_names(os.environ):
        raise SettingsError("; ".join(old))
    try:
        return Settings()  # type: ignore[call-arg] # from the environment
    except ValidationError as error:
        sentences = []
        for problem in error.errors(include_url=False, include_context=False):
            message = problem["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            name = str(problem["loc"][0]) if problem["loc"] else "settings"
            sentences.append(
                sentence_of(name, message, None if problem["type"] == "missing" else problem["input"])
            )
        raise SettingsError("; ".join(sentences)) from None
