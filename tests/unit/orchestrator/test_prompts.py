"""Clients of the older system are told what there is instead of a text prompt."""

from __future__ import annotations

from typing import Any

import pytest
from orchestrator.settings import SettingsError, read_settings

from .conftest import asking
from .test_questions import bearer, session_for

AGENT = "a" * 40


@pytest.mark.parametrize("path", ["/moshi/prompt", "/api/moshi/prompt"])
async def test_the_voice_takes_no_prompt_and_the_answer_says_why(make_app: Any, path: str) -> None:
    async with asking(make_app(orchestrator_agent_token=AGENT, moshi_voice="moshika")) as client:
        got = (await client.get(path, headers=bearer(AGENT))).json()
    assert (got["voice"], got["text_prompt"], got["supported"]) == ("moshika", None, False)
    assert "takes no text prompt" in got["reason"]


async def test_the_question_and_its_context_are_for_whom_they_are(make_app: Any, sqlite_url: str) -> None:
    path = "/api/moshi/prompt/question"
    async with asking(make_app(orchestrator_agent_token=AGENT)) as client:
        none = await client.get(path, headers=bearer(AGENT))
        assert (none.status_code, none.json()["code"]) == (404, "no_question")
        body = {"question": "Delete it?", "context": "12 GB"}
        asked = (await client.post("/api/questions", json=body, headers=bearer(AGENT))).json()
        person = bearer(await session_for(sqlite_url, asked["id"]))
        for key in (bearer(AGENT), person):
            got = (await client.get(path, headers=key)).json()
            assert (got["question"], got["context"], got["text_prompt"]) == ("Delete it?", "12 GB", None)
        assert (await client.get(path)).status_code == 404  # an open line: nobody in particular
        assert (await client.get(path, headers=bearer("x" * 43))).status_code == 401


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("PERSONAPLEX_VOICE", "PERSONAPLEX_VOICE is MOSHI_VOICE now"),
        ("PERSONAPLEX_HF_REPO", "PERSONAPLEX_HF_REPO is MOSHI_HF_REPO now"),
        ("PERSONAPLEX_TEXT_PROMPT", "Moshi takes no text prompt"),
        ("PERSONAPLEX_CPU_OFFLOAD", "set MOSHI_QUANTIZATION to q8"),
    ],
)
def test_an_old_setting_is_answered_with_the_new_name(
    monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.setenv("MOSHI_URL", "https://a.example")
    monkeypatch.setenv(name, "secret")
    with pytest.raises(SettingsError) as wrong:
        read_settings()
    assert sentence in str(wrong.value)
    assert "secret" not in str(wrong.value)
