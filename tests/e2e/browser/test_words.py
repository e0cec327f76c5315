"""What an engine with metadata adds: both sides' words, news of itself, a memory that outlives breaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line

CUT = (r"WebSocket connection to .* failed",)


@pytest.fixture
def caller(browser: Browser, line: Line) -> Iterator[Caller]:
    line.duplex = True
    line.desk.access = "open"
    with calling(
        browser, line.url, permissions=["microphone", "clipboard-read", "clipboard-write"]
    ) as caller:
        yield caller


def lines(caller: Caller) -> list[str]:
    """The transcript, as `who: words`."""
    said = caller.page.locator(".said")
    return [
        f"{said.nth(n).get_attribute('data-who')}: {said.nth(n).locator('.text').inner_text().strip()}"
        for n in range(said.count())
    ]


def hears(line: Line, text: str, *, final: bool) -> None:
    """The engine understood the caller."""
    line.tell(type="transcript", who="caller", text=text, final=final, start_ms=0, end_ms=400)


def test_what_the_engine_says_of_itself(caller: Caller, line: Line) -> None:
    caller.talk()
    caller.until(lambda: caller.number("engine-ms") == 22, 10, "turnaround of the engine")
    line.tell(type="dropped", heard_frames=3, said_frames=1)
    caller.until(lambda: caller.number("unheard-frames") == 3, 10, "frames unheard")
    assert caller.number("unsaid-frames") == 1
    line.tell(type="draining", seconds=600)
    caller.see("This line is about to be restarted.")
    line.tell(type="something_new", payload=[1])
    caller.hear(5)
    caller.watch.assert_clean()


def test_both_sides_can_be_read_copied_and_saved(caller: Caller, line: Line) -> None:
    line.words = (" I", " am", " only", " an", " echo", ".")
    caller.talk()
    caller.until(lambda: lines(caller) == ["moshi: I am only an echo."], 20, "words of Moshi")
    hears(line, "Hello the", final=False)
    caller.until(lambda: "you: Hello the" in lines(caller), 5, "words of the caller")
    hears(line, "Hello there.", final=True)
    caller.until(lambda: lines(caller)[-1] == "you: Hello there.", 5, "final words of the caller")
    assert len(lines(caller)) == 2
    # Moshi's own words come twice from such an engine; they are shown once.
    line.tell(type="transcript", who="moshi", text="I am only an echo.", final=True, start_ms=0, end_ms=1)
    caller.press("Hang up")
    caller.until_state("ended")
    assert len(lines(caller)) == 2
    caller.press("Copy text")
    caller.see("Copied")
    copied = caller.page.evaluate("navigator.clipboard.readText()")
    assert [row.split("] ")[1] for row in copied.splitlines()] == [
        "Moshi: I am only an echo.",
        "You: Hello there.",
    ]
    with caller.page.expect_download() as download:
        caller.press("Save text")
    assert download.value.path().read_text().strip() == copied
    assert download.value.suggested_filename.endswith(".txt")
    caller.watch.assert_clean()


def test_words_that_are_not_to_be_had_are_told(caller: Caller, line: Line) -> None:
    line.metadata = [{"type": "words", "available": False, "reason": "too many callers"}]
    caller.talk()
    caller.see("This line does not write down what you say at the moment (too many callers).")
    line.tell(type="words", available=True)
    caller.until(
        lambda: not caller.page.get_by_text("does not write down").is_visible(), 5, "words to be had again"
    )


class TestABrokenCall:
    def test_comes_back_with_moshis_memory(self, caller: Caller, line: Line) -> None:
        caller.talk()
        caller.hear(30)
        line.kill()
        caller.until(lambda: caller.number("resumed") == 1, 15, "the same conversation")
        assert caller.state == "talking"
        caller.see("The connection broke and is back. Moshi remembers everything.")
        caller.hear(10)
        assert len(line.conversations) == 1
        assert line.heard.connections == 2
        assert caller.number("conversations") == 1
        assert len(line.desk.places) == 1, "one call, however often its connection broke"
        caller.press("Hang up")
        caller.until_state("ended")
        caller.until(lambda: line.heard.closed_with == 1000, 5, "hanging up is said")
        caller.until(lambda: not line.desk.places, 5, "a place given back")
        caller.watch.assert_clean(*CUT)

    def test_that_fell_silent_too_and_the_engine_is_not_told_that_it_is_over(
        self, caller: Caller, line: Line
    ) -> None:
        caller.talk()
        caller.hear(30)
        line.hang = True
        caller.until_state("waiting", 10)
        line.hang = False
        assert line.heard.closed_with != 1000
        caller.until_state("talking", 15)
        assert caller.number("resumed") == 1
        assert len(line.conversations) == 1

    def test_is_not_begun_anew_without_a_press(self, caller: Caller, line: Line) -> None:
        caller.talk()
        caller.hear(10)
        first = line.desk.place
        line.forgetful = True
        line.kill()
        caller.until_state("forgot", 15)
        caller.see("The line is back, but Moshi forgot")
        caller.until(lambda: not line.heard.open, 5, "closed connection")
        heard = line.heard.pages
        caller.page.wait_for_timeout(1000)
        assert line.heard.pages == heard, "nobody is listened to before the press"
        caller.press("Start anew")
        caller.until_state("talking", 15)
        caller.hear(10)
        assert caller.number("conversations") == 2
        assert list(line.desk.places.values())[-1] is not first
        assert len(line.desk.places) == 1
        caller.watch.assert_clean(*CUT)

    def test_that_the_line_let_go_is_asked_about_as_well(self, caller: Caller, line: Line) -> None:
        caller.talk()
        caller.hear(10)
        line.desk.forget(line.desk.place)
        line.kill()
        caller.until_state("forgot", 15)
        caller.press("Hang up")
        caller.until_state("ended")
        caller.watch.assert_clean(*CUT, r"Failed to load resource: .* 40[49]")

    def test_by_a_restart_of_the_engine_is_waited_for_in_words(self, caller: Caller, line: Line) -> None:
        caller.talk()
        caller.hear(10)
        line.refuse_for(1.5, "going_away", "The engine is being stopped.")
        line.kill()
        caller.see("The line is being restarted")
        caller.until_state("talking", 20)

    def test_whose_old_connection_the_line_still_holds_comes_back_all_the_same(
        self, caller: Caller, line: Line
    ) -> None:
        caller.talk()
        caller.hear(10)
        line.refuse_for(1.5, "call_in_use", "This call is being held from somewhere else.")
        line.kill()
        caller.see("The line still holds the broken connection.")
        caller.until(lambda: caller.number("resumed") == 1, 20, "the same conversation")
