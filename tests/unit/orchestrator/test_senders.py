"""Services that reach a person: what they take, what they refuse, how they fail, and what stays secret."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from aiohttp import web
from orchestrator.messages import Message
from orchestrator.senders import (
    Apprise,
    Log,
    NotSentError,
    OpenClaw,
    cleaned,
    names_of,
    outcome_of,
    senders_of,
)

from .conftest import settings
from .people import SENT, ntfy, openclaw

TOKEN = "gateway-token-0123456789abcdef0123456789"
MESSAGE = Message("A question for you", "Delete it?\nhttps://line.example.org/#t=" + "s" * 43, "n-1")


# ------------------------------------------------------------------------------------------------- OpenClaw


async def test_openclaw_sends_whatsapp_through_its_message_tool() -> None:
    async with openclaw(TOKEN) as inbox:
        await OpenClaw(f"http://127.0.0.1:{inbox.port}", TOKEN, "+491701234567").send(MESSAGE)
    assert inbox.messages == [
        {
            "tool": "message",
            "args": {
                "action": "send",
                "channel": "whatsapp",
                "target": "+491701234567",
                "message": MESSAGE.text,
            },
            "idempotencyKey": "n-1",
        }
    ]


def result(**details: Any) -> dict[str, Any]:
    """A tool result as the gateway makes it: the details, and the same as JSON in its text."""
    text = json.dumps(details)
    return {"ok": True, "result": {"content": [{"type": "text", "text": text}], "details": details}}


@pytest.mark.parametrize(
    "answer",
    [
        SENT,
        result(deliveryStatus="sent"),
        result(channel="whatsapp", to="+49…", result={"messageId": "3EB0C7"}),
        {"ok": True, "result": {"content": [{"type": "text", "text": '{"messageId": "3EB0C7"}'}]}},
    ],
)
def test_what_was_sent(answer: Any) -> None:
    outcome_of(answer)


@pytest.mark.parametrize(
    ("answer", "why", "final"),
    [
        (result(status="delivery_queued", delivered=False, message="pending"), "delivery_queued", True),
        (
            {"ok": True, "result": {"content": [{"type": "text", "text": '{"status": "delivery_queued"}'}]}},
            "delivery_queued",
            True,
        ),
        (result(ok=False, deliveryStatus="partial_failed", error="…"), "partial_failed", False),
        (result(deliveryStatus="suppressed"), "suppressed", False),
        (result(messageId="unknown"), "without saying that the message was sent", True),
        (result(), "without saying that the message was sent", True),
        ({"ok": True}, "without saying that the message was sent", True),
        ({"ok": False, "error": {"type": "tool", "message": "no such target"}}, "no such target", False),
        ({"error": "x"}, "does not say why", False),
        ([], "not a JSON object", False),
        (None, "not a JSON object", False),
    ],
)
def test_what_was_not_sent_whatever_the_status(answer: Any, why: str, final: bool) -> None:
    with pytest.raises(NotSentError, match=why) as refused:
        outcome_of(answer)
    assert refused.value.final is final


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (web.json_response({"error": {"message": "no"}}, status=401), "does not know the token"),
        (web.json_response({"ok": False}, status=404), "no message tool"),
        (web.Response(text="<html>", status=502), "not a JSON object \\(HTTP 502\\)"),
        (web.json_response({"ok": False, "error": {"message": f"bad {TOKEN}"}}, status=500), "bad …"),
    ],
)
async def test_openclaw_refuses(answer: web.Response, why: str) -> None:
    async with openclaw(TOKEN) as inbox:
        inbox.answer = lambda _: answer
        with pytest.raises(NotSentError, match=why) as refused:
            await OpenClaw(f"http://127.0.0.1:{inbox.port}", TOKEN, "+491701234567").send(MESSAGE)
    assert TOKEN not in str(refused.value)
    assert not refused.value.final


async def test_openclaw_hangs_or_is_not_there() -> None:
    async with openclaw(TOKEN) as inbox:
        inbox.hangs = True
        with pytest.raises(NotSentError, match=r"did not answer within 0\.2 s"):
            await OpenClaw(f"http://127.0.0.1:{inbox.port}", TOKEN, "+49170", limit_s=0.2).send(MESSAGE)
    with pytest.raises(NotSentError, match="cannot be reached"):
        await OpenClaw(f"http://127.0.0.1:{inbox.port}", TOKEN, "+49170").send(MESSAGE)


# -------------------------------------------------------------------------------------------------- Apprise


async def test_apprise_sends_text_as_text() -> None:
    async with ntfy() as inbox:
        await Apprise(f"ntfy://127.0.0.1:{inbox.port}/hotline", "ntfy").send(
            Message("Title", "<b>not bold</b> *not bold*", "n-1")
        )
    assert inbox.messages[0]["topic"] == "hotline"
    assert (inbox.messages[0]["title"], inbox.messages[0]["message"]) == (
        "Title",
        "<b>not bold</b> *not bold*",
    )


@pytest.mark.parametrize(
    "answer",
    [
        web.json_response({"code": 40301, "http": 403, "error": "forbidden"}, status=403),
        web.json_response({"code": 42901, "http": 429, "error": "limit reached"}, status=429),
        web.Response(status=500),
    ],
)
async def test_a_service_that_rejects_is_named_without_its_token(
    answer: web.Response, capfd: pytest.CaptureFixture[str]
) -> None:
    async with ntfy() as inbox:
        inbox.answer = lambda _: answer
        sender = Apprise(f"ntfy://tk_secretsecretsecret@127.0.0.1:{inbox.port}/hotline", "ntfy")
        with pytest.raises(NotSentError, match=r"^ntfy: ") as refused:
            await sender.send(MESSAGE)
    assert "tk_secret" not in str(refused.value)
    assert "tk_secret" not in "".join(capfd.readouterr())


async def test_a_service_that_hangs_is_given_up() -> None:
    async with ntfy() as inbox:
        inbox.hangs = True
        url = f"ntfy://127.0.0.1:{inbox.port}/hotline?rto=1"
        with pytest.raises(NotSentError, match=r"ntfy did not answer within 0\.2 s"):
            await Apprise(url, "ntfy", limit_s=0.2).send(MESSAGE)
        with pytest.raises(NotSentError, match="ntfy: "):  # by Apprise's own limit
            await Apprise(url, "ntfy").send(MESSAGE)


async def test_metas_cloud_api_gets_the_approved_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://developers.facebook.com/docs/whatsapp/cloud-api/guides/send-message-templates"""
    from apprise.plugins.whatsapp import NotifyWhatsApp

    seen: list[Any] = []

    def answer(said: dict[str, Any]) -> web.Response:
        seen.append(said)
        if said["template"]["name"] != "hotline":
            return web.json_response(
                {"error": {"message": "(#132001) Template name does not exist", "code": 132001}}, status=404
            )
        contact = {"input": said["to"], "wa_id": said["to"].strip("+")}
        return web.json_response(
            {"messaging_product": "whatsapp", "contacts": [contact], "messages": [{"id": "wamid.X"}]}
        )

    async with ntfy() as inbox:
        inbox.answer = answer
        monkeypatch.setattr(
            NotifyWhatsApp, "notify_url", f"http://127.0.0.1:{inbox.port}/{{fb_ver}}/{{phone_id}}"
        )
        url = "whatsapp://{}:EAAtoken0token@106540352242922/+491701234567?lang=en_US&:body=1"
        await Apprise(url.format("hotline"), "whatsapp").send(MESSAGE)
        with pytest.raises(NotSentError, match="Template name does not exist"):
            await Apprise(url.format("other"), "whatsapp").send(MESSAGE)
    sent = seen[0]["template"]
    assert (sent["name"], sent["language"]) == ("hotline", {"code": "en_US"})
    assert MESSAGE.body in sent["components"][0]["parameters"][0]["text"]


# ---------------------------------------------------------------------------------------------------- order


def test_whatsapp_first_then_the_services_in_their_order_the_log_only_alone() -> None:
    everything = settings(
        moltbot_token=TOKEN,
        whatsapp_phone="+491701234567",
        notify_urls="ntfy://ntfy.example/one tgram://123456789:abcdefg_hijklmnop/12315544/ ntfy://ntfy.example/two",
    )
    assert [sender.name for sender in senders_of(everything)] == ["openclaw", "ntfy", "tgram", "ntfy-2"]
    assert [sender.name for sender in senders_of(settings(moltbot_token=TOKEN))] == ["log"]
    assert [sender.name for sender in senders_of(settings(whatsapp_phone="+491701234567"))] == ["log"]


def test_services_of_one_kind_are_told_apart() -> None:
    assert names_of(["ntfy://a", "NTFY://b", "mailto://c", "ntfy://d"]) == [
        "ntfy",
        "ntfy-2",
        "mailto",
        "ntfy-3",
    ]


async def test_the_log_says_that_something_waits_and_neither_text_nor_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        await Log().send(MESSAGE)
    assert "set orchestrator_notify_urls" in caplog.text
    assert "Delete it?" not in str([vars(record) for record in caplog.records])
    assert "#t=" not in str([vars(record) for record in caplog.records])


def test_a_reason_holds_no_secret_and_no_link() -> None:
    text = f"failed at https://api.example/bot{TOKEN}/send\nfor https://line/#t={'s' * 43}"
    assert cleaned(text, [TOKEN]) == "failed at https://api.example/bot…/send for https://line/#t=…"
    assert len(cleaned("x" * 5000, [])) == 300
