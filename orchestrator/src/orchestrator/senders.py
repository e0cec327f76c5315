"""Ways to reach a person: OpenClaw's WhatsApp, the services of Apprise, the log when there is nothing else.

A sender either takes a message or raises `NotSentError` with a sentence that holds no token and no link.
``final`` says that asking the same sender again about the same message is useless, or would tell the person
twice: OpenClaw answers ``delivery_queued`` for an account that is not linked yet and sends the message by
itself once it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import apprise
import httpx

from orchestrator.messages import Message
from orchestrator.settings import Settings

SEND_S = 30.0
"""A service that has not answered by then hangs."""
WHY_CHARS = 300

log = logging.getLogger("orchestrator.senders")


class NotSentError(Exception):
    """A sender did not take a message."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Sender(Protocol):
    """A way to reach the person."""

    name: str

    async def send(self, message: Message) -> None:
        """Send one message. Raises NotSentError."""


def cleaned(text: str, secrets: Iterable[str]) -> str:
    """Return a text on one line, short, without any of these secrets and without what follows a ``#t=``."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    text = re.sub(r"#t=[\w-]+", "#t=…", text)
    return " ".join(text.split())[:WHY_CHARS]


# --------------------------------------------------------------------------------------------------- OpenClaw


def outcome_of(answer: Any) -> None:
    """Read what ``POST /tools/invoke`` answered for the message tool. Raises NotSentError unless it was sent.

    The answer is ``{"ok": true, "result": {"content": […], "details": {…}}}``. Sent is what has
    ``deliveryStatus: sent`` or the channel's id of the message; HTTP 200 alone says nothing.
    """
    if not isinstance(answer, dict):
        raise NotSentError("OpenClaw answered with something that is not a JSON object")
    if answer.get("ok") is not True:
        error = answer.get("error")
        said = error.get("message") if isinstance(error, dict) else None
        raise NotSentError(f"OpenClaw refused: {said or 'it does not say why'}")
    result = answer.get("result")
    details = result.get("details") if isinstance(result, dict) else None
    if not isinstance(details, dict):
        details = text_of(result)
    inner = details.get("result")
    parts = [details, inner] if isinstance(inner, dict) else [details]
    status = next((part["status"] for part in parts if isinstance(part.get("status"), str)), "")
    if status == "delivery_queued":
        raise NotSentError(
            "OpenClaw queued the message (delivery_queued): its WhatsApp account is not linked, or offline. "
            "Mend: openclaw channels login --channel whatsapp, as docs/notifications.md shows",
            final=True,
        )
    told = next((part["deliveryStatus"] for part in parts if part.get("deliveryStatus")), None)
    refused = any(part.get(name) is False for part in parts for name in ("ok", "delivered"))
    if refused or told not in (None, "sent"):
        raise NotSentError(f"OpenClaw did not deliver: {told or status or 'it does not say why'}")
    ids = (part.get(name) for part in parts for name in ("messageId", "message_id"))
    if told != "sent" and not any(isinstance(one, str) and one and one != "unknown" for one in ids):
        raise NotSentError("OpenClaw answered without saying that the message was sent", final=True)


def text_of(result: Any) -> dict[str, Any]:
    """Return the JSON object in a tool result's first text; empty when there is none."""
    try:
        found = json.loads(result["content"][0]["text"])
    except (TypeError, KeyError, IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class OpenClaw:
    """WhatsApp through OpenClaw's gateway on this machine."""

    name = "openclaw"

    def __init__(self, url: str, token: str, phone: str, *, limit_s: float = SEND_S) -> None:
        self._url = url
        self._token = token
        self._phone = phone
        self._limit_s = limit_s

    async def send(self, message: Message) -> None:
        """Have the gateway's message tool send it, without waking an agent."""
        body = {
            "tool": "message",
            "args": {
                "action": "send",
                "channel": "whatsapp",
                "target": self._phone,
                "message": message.text,
            },
            "idempotencyKey": message.key,
        }
        try:
            async with httpx.AsyncClient(timeout=self._limit_s, trust_env=False) as client:
                answer = await client.post(
                    f"{self._url}/tools/invoke", json=body, headers={"Authorization": f"Bearer {self._token}"}
                )
            try:
                said = answer.json()
            except ValueError:
                said = None
        except httpx.TimeoutException:
            raise NotSentError(f"OpenClaw did not answer within {self._limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise NotSentError(f"OpenClaw cannot be reached ({type(error).__name__})") from None
        if answer.status_code == 401:
            raise NotSentError("OpenClaw does not know the token (401). Mend: run site.yml again")
        if answer.status_code == 404:
            raise NotSentError(
                "OpenClaw has no message tool (404): it is not allowed, or no channel is set up"
            )
        try:
            outcome_of(said)
        except NotSentError as error:
            why = cleaned(f"{error} (HTTP {answer.status_code})", [self._token, self._phone])
            raise NotSentError(why, final=error.final) from None


# ---------------------------------------------------------------------------------------------------- Apprise


class Apprise:
    """One of the services that Apprise knows (https://github.com/caronc/apprise)."""

    def __init__(self, url: str, name: str, *, limit_s: float = SEND_S) -> None:
        self._service = apprise.Apprise()
        if not self._service.add(url):
            raise ValueError("is not a URL that Apprise understands")
        self.name = name
        self._limit_s = limit_s
        # What of a URL may be a token: everything of some length that is no plain word of the service's.
        self._secrets = [url, *(part for part in re.split(r"[/:@?&=,#\s]+", url) if len(part) >= 8)]

    async def send(self, message: Message) -> None:
        """Send it. Apprise has a time limit for each service; ours is for what hangs in spite of it."""
        with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
            try:
                taken = await asyncio.wait_for(
                    self._service.async_notify(
                        title=message.title, body=message.body, body_format=apprise.NotifyFormat.TEXT
                    ),
                    self._limit_s,
                )
            except asyncio.TimeoutError:
                raise NotSentError(f"{self.name} did not answer within {self._limit_s:g} s") from None
            except Exception as error:
                log.debug("a service failed", exc_info=True)
                raise NotSentError(f"{self.name} failed ({type(error).__name__})") from None
            if not taken:
                raise NotSentError(
                    cleaned(f"{self.name}: {said.getvalue() or 'it does not say why'}", self._secrets)
                )


def names_of(urls: Sequence[str]) -> list[str]:
    """Name services by their kind, telling several of one kind apart: ntfy, tgram, ntfy-2."""
    names: list[str] = []
    for url in urls:
        kind = url.partition("://")[0].lower()[:20]
        same = sum(1 for name in names if name.split("-")[0] == kind)
        names.append(f"{kind}-{same + 1}" if same else kind)
    return names


# -------------------------------------------------------------------------------------------------------- log


class Log:
    """Nobody to send to: whoever reads the log finds that something waits. Texts and links stay out of it."""

    name = "log"

    async def send(self, message: Message) -> None:
        """Write that there is a message."""
        log.warning(
            "a message has nobody to go to: set orchestrator_notify_urls",
            extra={"notification": message.key},
        )


def senders_of(settings: Settings) -> list[Sender]:
    """Return the senders in the order in which they are tried; the log only when there is no other."""
    senders: list[Sender] = []
    token = settings.moltbot_token.get_secret_value()
    if token and settings.whatsapp_phone:
        senders.append(OpenClaw(settings.moltbot_url, token, settings.whatsapp_phone))
    urls = settings.notify_urls.get_secret_value().split()
    senders += [Apprise(url, name) for url, name in zip(urls, names_of(urls), strict=True)]
    return senders or [Log()]
