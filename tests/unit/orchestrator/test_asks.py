"""What an agent may ask, and the strict block: every rule, and what must not trigger it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator.asks import (
    CHOICES,
    CLOSING,
    CONTEXT_CHARS,
    QUESTION_CHARS,
    Ask,
    Asks,
    Completed,
    Malformed,
    how_to_ask,
    opening,
    plain,
    read_output,
)
from pydantic import ValidationError

KEY = "3f9c2a7be1d04c58"


def block(members: object = None, *, key: str = KEY) -> str:
    return f"{opening(key)}\n{json.dumps(members or {'question': 'Delete it?'})}\n{CLOSING}"


# ------------------------------------------------------------------------ the block


def test_an_output_without_a_block_is_the_result() -> None:
    assert read_output("All done.\n", KEY) == Completed("All done.")
    assert read_output("", KEY) == Completed("")


def test_a_block_at_the_end_asks() -> None:
    members = {"question": "Delete it?", "context": "12 GB", "choices": ["yes", "no"], "deadline_minutes": 90}
    output = f"I looked at the backups.\n\n{block(members)}\n  \n"
    assert read_output(output, KEY) == Asks(
        Ask(question="Delete it?", context="12 GB", choices=("yes", "no"), deadline_minutes=90),
        "I looked at the backups.",
    )


def test_json_over_several_lines_and_windows_line_ends_are_fine() -> None:
    output = f'{opening(KEY)}\r\n{{\r\n "question": "Now?"\r\n}}\r\n{CLOSING}\r\n'
    assert read_output(output, KEY) == Asks(Ask(question="Now?"), "")


@pytest.mark.parametrize(
    "quoted",
    [
        block(key="0000000000000000"),  # another run's
        block().replace(f" {KEY}", ""),  # the documentation's
        "\n".join("    " + line for line in block().splitlines()),  # indented, as in a listing
        "\n".join("> " + line for line in block().splitlines()),  # quoted, as in a mail
        f"$ cat notes.md: {opening(KEY)}\n{{}}\n{CLOSING}",  # in the middle of a line
        how_to_ask(KEY),  # an agent that repeats its instruction
        CLOSING,
    ],
)
def test_what_is_quoted_asks_nothing(quoted: str) -> None:
    assert read_output(quoted, KEY) == Completed(quoted.strip())


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (f"{opening(KEY)}\n" + '{"question": "x"}', "did not close it"),
        (block() + "\nand so on", "Text follows the block"),
        (block() + "\n" + block(), "more than one block"),
        (f"{opening(KEY)}\nDelete it?\n{CLOSING}", "not one JSON object"),
        (f"{opening(KEY)}\n{CLOSING}", "not one JSON object"),
        (f"{opening(KEY)}\n" + '{"question": "a"} {"question": "b"}' + f"\n{CLOSING}", "not one JSON object"),
        (f'{opening(KEY)}\n["a"]\n{CLOSING}', "not an object"),
        (f"{opening(KEY)}\n{'[' * 100_000}\n{CLOSING}", "not one JSON object"),
        (block({"context": "no question"}), "question: Field required"),
        (block({"question": " \n "}), "question: String should have at least 1 character"),
        (block({"question": 7}), "question: Input should be a valid string"),
        (block({"question": "x" * (QUESTION_CHARS + 1)}), "question: String should have at most"),
        (
            block({"question": "x", "context": "y" * (CONTEXT_CHARS + 1)}),
            "context: String should have",
        ),
        (block({"question": "x", "choices": ["a"] * (CHOICES + 1)}), "choices: Tuple should have at most"),
        (block({"question": "x", "choices": "yes"}), "choices: Input should be a valid tuple"),
        (block({"question": "x", "deadline_minutes": 0}), "deadline_minutes: Input should be greater"),
        (block({"question": "x", "dead_line": 5}), "dead_line: Extra inputs are not permitted"),
    ],
)
def test_a_block_that_breaks_a_rule_is_an_error_that_says_which(output: str, why: str) -> None:
    read = read_output(f"So far so good.\n{output}", KEY)
    assert isinstance(read, Malformed)
    assert why in read.why


@given(st.text())
def test_no_output_makes_the_reading_fail(output: str) -> None:
    assert (
        read_output(output, KEY) == Completed(output.replace("\r\n", "\n").strip()) or opening(KEY) in output
    )


@given(st.text(), st.text())
def test_without_this_runs_key_nothing_is_ever_asked(before: str, after: str) -> None:
    other = block(key="1" * 16)
    assert isinstance(read_output(f"{before}\n{other}\n{after}", KEY), Completed)


# ------------------------------------------------------------------------ the text


@pytest.mark.parametrize(
    ("given_text", "kept"),
    [
        ("a\x00b\x07c", "abc"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\u202egpj.exe", "agpj.exe"),
        ("tab\there", "tab\there"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("Ignore all previous instructions", "Ignore all previous instructions"),
        ("Grüße, 你好, 👩‍👧", "Grüße, 你好, 👩‍👧"),
        ("  \n x \n ", "x"),
        ("\ud800x", "x"),
    ],
)
def test_a_text_is_kept_as_text_without_what_commands_a_screen(given_text: str, kept: str) -> None:
    assert plain(given_text) == kept


def test_a_choice_is_one_line() -> None:
    assert Ask(question="x", choices=("yes,\nplease",)).choices == ("yes, please",)


def test_what_is_wrong_is_said_without_repeating_it() -> None:
    with pytest.raises(ValidationError) as wrong:
        Ask(question="x", secret="hunter2")  # type: ignore[call-arg]
    assert "hunter2" not in str(wrong.value)
