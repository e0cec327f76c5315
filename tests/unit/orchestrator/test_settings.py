"""The settings: read once, and a wrong one is one sentence that names the variable and the mend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from orchestrator.settings import Settings, SettingsError, host_of, read_settings, url_of

ROOT = Path(__file__).parents[3]


def given_environment(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_what_the_role_line_renders_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of /etc/hotline/hotline.env, with names that are not this program's among them."""
    given_environment(
        monkeypatch,
        HOTLINE_VERSION="1.2.0",
        LINE_ACCESS="open",
        LINE_PORT="8998",
        LINE_NAMES="",
        LINE_ENGINES="0,1,2",
        LINE_ENGINE_PORT="8999",
        LINE_ORCHESTRATOR_PORT="5000",
        MOSHI_URL="https://[2001:db8::1]:8998",
        TZ="UTC",
        TLS_PROVIDER="manual",
        MOSHI_ENGINE="moshi_server",
        MOSHI_DEVICE="cuda",
        MOSHI_WEIGHTS="hub",
        MOSHI_VOICE="moshiko",
        MOSHI_QUANTIZATION="bf16",
        MOSHI_HF_REPO="kyutai/moshiko-pytorch-bf16",
        MOSHI_CONVERSATIONS="1",
        MAX_MOSHI_FAILURES="3",
    )
    settings = read_settings()
    assert settings.engine_ports() == {0: 8999, 1: 9000, 2: 9001}
    assert settings.line_names == ()
    assert settings.moshi_url == "https://[2001:db8::1]:8998"
    assert (settings.orchestrator_docs, settings.orchestrator_log_level) == (False, "info")


def test_a_line_that_says_nothing_about_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    given_environment(monkeypatch, MOSHI_URL="https://a.example")
    assert read_settings().line_access == "links"


def test_names_are_separated_by_commas_or_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    given_environment(
        monkeypatch, MOSHI_URL="https://a.example", LINE_NAMES="Voice.Example.org, 10.0.0.7 [2001:DB8::1]"
    )
    assert read_settings().line_names == ("voice.example.org", "10.0.0.7", "2001:db8::1")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {},
            "MOSHI_URL is missing (the public URL of the line, used in every link). Mend: set line_url",
        ),
        ({"MOSHI_URL": ""}, "MOSHI_URL is ''"),
        ({"MOSHI_URL": "line.example.org"}, "must be a URL such as https://line.example.org:8998"),
        ({"MOSHI_URL": "https://x:port"}, "must be a URL"),
        ({"MOSHI_URL": "https://x/path"}, "without path, query or user"),
        ({"MOSHI_URL": "https://u:p@x"}, "without path, query or user"),
        ({"LINE_ACCESS": "closed"}, "LINE_ACCESS is 'closed'"),
        (
            {"LINE_PORT": "0"},
            "LINE_PORT is '0' (the public port, nginx's): input should be greater than or equal to 1",
        ),
        ({"LINE_PORT": "a lot"}, "Mend: set line_port and run site.yml again"),
        ({"LINE_ENGINES": ""}, "LINE_ENGINES"),
        ({"LINE_ENGINES": "0,one"}, "LINE_ENGINES is 'one'"),
        ({"LINE_NAMES": "a,b!"}, "LINE_NAMES is 'b!'"),
        ({"MOSHI_DEVICE": "tpu"}, "Mend: set moshi_device and run site.yml again"),
        ({"MOSHI_ENGINE": "echo"}, "Mend: set moshi_engine and run site.yml again"),
        ({"MAX_MOSHI_FAILURES": "-1"}, "Mend: set moshi_max_failures"),
        ({"ORCHESTRATOR_DOCS": "perhaps"}, "Mend: set orchestrator_docs"),
        ({"ORCHESTRATOR_LOG_LEVEL": "loud"}, "Mend: set orchestrator_log_level"),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    given_environment(
        monkeypatch, **({"MOSHI_URL": "https://a.example"} if environment else {}) | environment
    )
    with pytest.raises(SettingsError) as wrong:
        read_settings()
    assert sentence in str(wrong.value)
    assert len(str(wrong.value).splitlines()) == 1


def test_everything_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given_environment(monkeypatch, LINE_PORT="x", MOSHI_DEVICE="y")
    with pytest.raises(SettingsError, match=r"MOSHI_URL.*LINE_PORT.*MOSHI_DEVICE"):
        read_settings()


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_no_url_makes_it_fail_in_another_way(text: str) -> None:
    for reads in (url_of, host_of):
        try:
            assert isinstance(reads(text), str)
        except ValueError as error:
            assert str(error).startswith("must be")


def test_the_mends_are_variables_that_there_are() -> None:
    """Whoever follows the sentence finds the variable in a role's defaults."""
    known = {
        name
        for path in ROOT.glob("roles/*/defaults/main.yml")
        for name in (yaml.safe_load(path.read_text()) or {})
    }
    named = {
        str(field.json_schema_extra["ansible"])
        for field in Settings.model_fields.values()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra["ansible"]
    }
    assert named
    assert named <= known


def test_what_is_read_is_what_is_rendered() -> None:
    """Every setting comes from the line's settings file, the unit or its secrets; defaults are for runs by
    hand.
    """
    places = ("line/vars/main.yml", "orchestrator/tasks/run.yml", "orchestrator/vars/main.yml")
    text = "\n".join((ROOT / "roles" / place).read_text() for place in places)
    rendered = set(re.findall(r"'([A-Z][A-Z_]+)':", text)) | set(
        re.findall(r"^ +([A-Z][A-Z_]+):", text, re.M)
    )
    assert {name.upper() for name in Settings.model_fields} <= rendered


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WHATSAPP_PHONE": "0170 1234567"}, "with its country code and nothing else, such as +4917"),
        ({"WHATSAPP_PHONE": "+49 170 1234567"}, "Mend: set orchestrator_whatsapp_phone"),
        ({"WHATSAPP_PHONE": "+0170123456789012"}, "WHATSAPP_PHONE is '+0170123456789012'"),
        ({"NOTIFY_QUIET_HOURS": "22-7"}, "must be a part of the day such as 22:00-07:00"),
        ({"NOTIFY_QUIET_HOURS": "22:00-24:00"}, "Mend: set orchestrator_notify_quiet_hours"),
        ({"NOTIFY_REMINDER_MINUTES": "-1"}, "Mend: set orchestrator_notify_reminder_minutes"),
        ({"TZ": "Europe/Nowhere"}, "must be the name of a time zone"),
        ({"TZ": "../../etc/passwd"}, "Mend: set line_timezone"),
        ({"EXECUTION_TIMEOUT_MINUTES": "0"}, "Mend: set orchestrator_execution_timeout_minutes"),
        ({"MOLTBOT_URL": "http://10.0.0.7:18789"}, "must be on this machine"),
        (
            {"NOTIFY_URLS": "ntfy://ntfy.sh/topic nonsense://secret"},
            "number 2 of the URLs is none that",
        ),
    ],
)
def test_a_wrong_setting_of_messages_is_named_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    given_environment(monkeypatch, **{"MOSHI_URL": "https://a.example"} | environment)
    with pytest.raises(SettingsError) as wrong:
        read_settings()
    assert sentence in str(wrong.value)
    assert "secret" not in str(wrong.value)
