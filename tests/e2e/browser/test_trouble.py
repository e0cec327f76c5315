"""What can go wrong in a call, and that the page says it in words, never hangs, and never calls twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, Route

from tests.e2e.browser import driver, standin
from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line

# Chromium itself reports a connection that it could not make, and a loading that failed.
UNREACHABLE = (r"WebSocket connection to .* failed", r"Failed to load resource")

# Replaces the microphone by one that the test holds: what it gives, and the stream it gave.
HELD = """
    const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    window.given = [];
    window.refuse = false;
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        if (window.refuse) throw new DOMException('', 'NotFoundError');
        const stream = await real(wanted);
        window.given.push(stream);
        return stream;
    };
"""


def refusing(name: str) -> str:
    """A page script that blocks the microphone with this exception."""
    return f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '{name}'))"


def fails(caller: Caller, words: str, line: Line, seconds: float = 20) -> None:
    """The call is not made, the page says why, and offers to try again; the engine was not bothered."""
    caller.press("Call Moshi")
    caller.until_state("failed", seconds)
    caller.see(words)
    assert caller.page.get_by_role("alert").is_visible()
    assert caller.page.get_by_role("button", name="Try again").is_visible()
    assert line.conversations == []


class TestTheMicrophone:
    @pytest.mark.parametrize(
        ("exception", "words"),
        [
            ("NotAllowedError", "The microphone is not allowed"),
            ("SecurityError", "The microphone is not allowed"),
            ("NotFoundError", "No microphone found"),
            ("OverconstrainedError", "No microphone found"),
            ("NotReadableError", "The microphone is in use"),
            ("AbortError", "The microphone does not work here"),
        ],
    )
    def test_blocked_by_a_script(self, browser: Browser, line: Line, exception: str, words: str) -> None:
        with calling(browser, line.url, script=refusing(exception)) as caller:
            fails(caller, words, line)
            caller.watch.assert_clean()
        assert not any("/api/chat" in request for request in line.requests)

    def test_refused_by_the_browser(self, playwright: Playwright, microphone: Path, line: Line) -> None:
        browser = driver.launch(playwright, microphone, allow=False)
        with calling(browser, line.url, permissions=[]) as caller:
            fails(caller, "The microphone is not allowed", line)
            caller.watch.assert_clean()
        browser.close()

    def test_there_is_none(self, playwright: Playwright, line: Line) -> None:
        browser = driver.launch(playwright, None)
        with calling(browser, line.url) as caller:
            fails(caller, "No microphone found", line)
            caller.watch.assert_clean()
        browser.close()

    def test_allowed_after_all(self, browser: Browser, line: Line) -> None:
        script = HELD + "window.refuse = true;"
        with calling(browser, line.url, script=script) as caller:
            fails(caller, "No microphone found", line)
            caller.page.evaluate("window.refuse = false")
            caller.press("Try again")
            caller.until_state("talking")
            caller.hear(10)

    def test_plain_http_is_told_before_anybody_presses_a_button(
        self, playwright: Playwright, microphone: Path, line: Line
    ) -> None:
        rule = "--host-resolver-rules=MAP hotline.test 127.0.0.1"
        browser = driver.launch(playwright, microphone, more=[rule])
        with calling(browser, line.url.replace("127.0.0.1", "hotline.test")) as caller:
            caller.see("No microphone over plain http")
            assert caller.page.get_by_role("button").count() == 0
            # Chromium ignores headers that need a secure page, and says so.
            caller.watch.assert_clean("Cross-Origin-Opener-Policy")
        browser.close()

    def test_unplugged_during_the_call(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url, script=HELD) as caller:
            caller.talk()
            caller.hear(5)
            caller.page.evaluate(
                """() => {
                    window.refuse = true;
                    const [track] = window.given[0].getTracks();
                    track.stop();
                    track.dispatchEvent(new Event('ended'));
                }"""
            )
            caller.see("The microphone is gone")
            voiced, samples = line.heard.voiced, line.heard.samples
            caller.hear(20)
            assert line.heard.samples > samples, "the engine's clock is our sound: silence must come"
            assert line.heard.voiced - voiced < 24_000 * 0.3
            caller.page.evaluate("window.refuse = false")
            caller.page.evaluate("navigator.mediaDevices.dispatchEvent(new Event('devicechange'))")
            caller.until(lambda: line.heard.voiced > voiced + 24_000, 10, "voice at the engine")
            assert not caller.page.get_by_text("The microphone is gone").is_visible()


class TestWhatTheLineSays:
    @pytest.mark.parametrize(
        ("code", "close", "words"),
        [
            ("line_full", 1013, "The line is busy"),
            ("line_down", 1013, "The line is down"),
            ("not_allowed", 1008, "This line is not open to you"),
            ("something_new", 1013, "The line refused the call"),
        ],
    )
    def test_is_shown_with_its_own_words(
        self, browser: Browser, line: Line, code: str, close: int, words: str
    ) -> None:
        line.refusal = (code, f"In the line's own words: {code}.", close)
        with calling(browser, line.url) as caller:
            fails(caller, words, line)
            caller.see(f"In the line's own words: {code}.")
            assert caller.page.locator("main").get_attribute("data-fault")
            caller.watch.assert_clean()
            line.refusal = None
            caller.press("Try again")
            caller.until_state("talking")
            caller.hear(5)

    def test_a_line_on_its_way_up_is_waited_for(self, browser: Browser, line: Line) -> None:
        line.refusal = ("starting", "Loading weights, 40 %.", 1013)
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("waiting")
            caller.see("Moshi is waking up")
            caller.see("Loading weights, 40 %.")
            line.refusal = None
            caller.until_state("talking", 15)
            caller.hear(5)
            assert caller.number("conversations") == 1

    def test_the_wait_can_be_ended(self, browser: Browser, line: Line) -> None:
        line.refusal = ("starting", "", 1013)
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("waiting")
            caller.press("Hang up")
            caller.until_state("ended")
            asked = [request for request in line.requests if request.startswith("/api/")]
            caller.page.wait_for_timeout(2500)
            assert [request for request in line.requests if request.startswith("/api/")] == asked


class TestWhatTheLineDoesNotSay:
    def test_nobody_picks_up(self, browser: Browser, line: Line) -> None:
        line.handshake = False
        with calling(browser, line.url) as caller:
            fails(caller, "Moshi does not pick up", line)
            caller.watch.assert_clean()

    def test_the_line_is_gone(self, browser: Browser, page_folder: Path) -> None:
        with standin.running(page_folder) as line:
            page = calling(browser, line.url)
            caller = page.__enter__()
            caller.page.wait_for_timeout(500)
        try:
            # What the call needs was not loaded before: the page itself says which part is missing, or who.
            caller.press("Call Moshi")
            caller.until_state("failed", 30)
            assert caller.page.get_by_role("alert").is_visible()
        finally:
            page.__exit__(None, None, None)

    def test_silence_for_two_seconds_is_a_broken_call(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(10)
            line.hang = True
            took = caller.until_state("waiting", 10)
            assert 1.5 < took < 4.5
            caller.see("Moshi fell silent")
            line.hang = False
            caller.until_state("forgot")
            caller.press("Start anew")
            caller.until_state("talking")
            caller.hear(10)
            assert caller.number("conversations") == 2

    def test_sound_that_cannot_be_decoded_is_as_good_as_silence(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(10)
            line.garbage = True
            caller.until_state("waiting", 10)
            caller.see("Moshi fell silent")
            line.garbage = False
            caller.until_state("forgot")
            caller.press("Start anew")
            caller.until_state("talking")
            caller.hear(10)
            caller.watch.assert_clean()

    def test_a_stall_of_a_second_is_not(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(25)
            line.stall(1.0)
            caller.page.wait_for_timeout(2500)
            assert caller.state == "talking"
            assert caller.number("conversations") == 1
            assert caller.number("underruns") >= 1
            caller.hear(25)

    def test_the_delay_after_a_stall_goes_down_again(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(25)
            line.stall(0.4)
            caller.until(lambda: caller.number("buffer-ms") > 200, 5, "the delay that a stall leaves")
            caller.until(lambda: caller.number("buffer-ms") < 120, 12, "a small delay again")
            # By faster speech; a machine under load adds stalls of its own, and the largest are dropped.
            assert caller.number("skipped-ms") + caller.number("dropped-ms") > 100

    def test_no_network(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(5)
            caller.page.context.set_offline(True)
            line.kill()
            caller.until_state("waiting", 10)
            caller.page.evaluate("window.dispatchEvent(new Event('offline'))")
            caller.see("You are offline")
            caller.page.context.set_offline(False)
            caller.until_state("forgot", 15)
            caller.press("Start anew")
            caller.until_state("talking", 15)
            caller.hear(5)


class TestWhatIsSent:
    def test_a_voice(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.until(lambda: line.heard.voiced_ms > 1000, 15, "voice at the engine")
            # 40 ms a page and nothing lost: what the engine decoded is what the page says it sent.
            caller.until(lambda: abs(line.heard.ms - caller.number("sent-ms")) < 400, 5, "all that was sent")

    def test_muted_silence_and_nothing_but_silence(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.until(lambda: line.heard.voiced_ms > 500, 15, "voice at the engine")
            caller.press("Mute")
            caller.page.wait_for_timeout(600)
            voiced, samples = line.heard.voiced, line.heard.samples
            caller.page.wait_for_timeout(2500)
            assert line.heard.voiced == voiced
            assert line.heard.samples > samples + 24_000, "the engine's clock is our sound: silence must come"
            caller.press("Unmute")
            caller.until(lambda: line.heard.voiced > voiced + 12_000, 15, "voice at the engine again")

    def test_nothing_after_hanging_up_and_the_microphone_is_off(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url, script=HELD) as caller:
            caller.talk()
            caller.hear(10)
            caller.press("Hang up")
            caller.until(lambda: not line.heard.open, 5, "closed connection")
            pages = line.heard.pages
            caller.page.wait_for_timeout(1000)
            assert line.heard.pages == pages
            assert len(line.conversations) == 1
            states = caller.page.evaluate("window.given.flatMap(s => s.getTracks()).map(t => t.readyState)")
            assert states == ["ended"]

    def test_nothing_after_leaving_the_page(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(5)
            caller.page.goto("about:blank")
            deadline = 50
            while line.heard.open and deadline:
                caller.page.wait_for_timeout(100)
                deadline -= 1
            assert not line.heard.open

    def test_one_call_however_often_one_presses(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.page.evaluate(
                "() => { const b = document.querySelector('.dial'); b.click(); b.click(); b.click(); }"
            )
            caller.until_state("talking")
            caller.hear(10)
            assert len(line.conversations) == 1


class TestTheDecoder:
    def test_a_slow_one_misses_nothing(self, browser: Browser, line: Line) -> None:
        """The stream's head comes in the first message; who misses it hears nothing for the whole call."""
        with calling(browser, line.url) as caller:

            def slowly(route: Route) -> None:
                caller.page.wait_for_timeout(2000)
                route.continue_()

            caller.page.route("**/*.wasm", slowly)
            caller.talk()
            caller.hear(10)
            chat = [n for n, request in enumerate(line.requests) if request.startswith("/api/chat")]
            wasm = [n for n, request in enumerate(line.requests) if request.endswith(".wasm")]
            assert wasm and wasm[0] < chat[0]
            # All was decoded, from the first page on; the engine skips the answer to the first frame.
            sent = caller.number("sent-ms")
            caller.until(lambda: caller.number("received-ms") >= sent - 160, 10, "whole answer")

    def test_none_at_all_is_told(self, browser: Browser, line: Line) -> None:
        with calling(browser, line.url) as caller:
            caller.page.route("**/decoderWorker*", lambda route: route.abort())
            fails(caller, "The sound could not start", line, 30)


class TestTheScreen:
    @pytest.fixture
    def keyboard(self, browser: Browser, line: Line) -> Iterator[Caller]:
        with calling(browser, line.url) as caller:
            yield caller

    def test_a_call_can_be_made_with_the_keyboard_alone(self, keyboard: Caller) -> None:
        page = keyboard.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Call Moshi"
        page.keyboard.press("Enter")
        keyboard.until_state("talking")
        assert page.evaluate("document.activeElement.innerText") == "Hang up"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Space")
        keyboard.see("Unmute")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        keyboard.until_state("ended")
        assert page.evaluate("document.activeElement.innerText") == "Call again"

    def test_the_authority_is_offered_only_where_there_is_one(self, browser: Browser, line: Line) -> None:
        question = "Does your phone or browser distrust this page?"
        with calling(browser, line.url) as caller:
            caller.page.wait_for_load_state("networkidle")
            assert not caller.page.get_by_text(question).is_visible()
        line.authority = "/hotline-ca.pem"
        with calling(browser, line.url) as caller:
            caller.see(question)
            caller.page.get_by_text(question).click()
            caller.see("iPhone, iPad")
            caller.see("Android")
            with caller.page.expect_download() as download:
                caller.page.get_by_role("link", name="Download the certificate authority").click()
            assert download.value.url == f"{line.url}/hotline-ca.pem"

    def test_a_page_whose_line_says_nothing_about_itself_still_calls(
        self, browser: Browser, line: Line
    ) -> None:
        line.version, line.health = None, 503
        with calling(browser, line.url) as caller:
            caller.talk()
            caller.hear(5)
            assert not caller.page.locator(".version").is_visible()

    @pytest.mark.parametrize("width", [320, 390, 768, 1280])
    def test_nothing_hangs_over_the_edge(self, browser: Browser, line: Line, width: int) -> None:
        line.authority = "/hotline-ca.pem"
        with calling(browser, line.url, viewport={"width": width, "height": 700}) as caller:
            edge = "document.documentElement.scrollWidth - window.innerWidth"
            assert caller.page.evaluate(edge) <= 0
            caller.talk()
            assert caller.page.evaluate(edge) <= 0
            bottom = caller.page.get_by_role("button", name="Hang up").bounding_box()
            assert bottom and bottom["y"] + bottom["height"] <= 700, "the way out is always on the screen"


def test_the_stand_in_is_as_strict_as_the_line() -> None:
    """The page runs under headers at least as strict as those that nginx sends."""
    template = Path(__file__).parents[3] / "roles/nginx/templates/hotline.conf.j2"
    theirs = next(
        text.split('"')[1].replace(" $hotline_wss", "")
        for text in template.read_text().splitlines()
        if text.strip().startswith('default "default-src')
    )

    def directives(policy: str) -> dict[str, set[str]]:
        return {name: set(values) for name, *values in (part.split() for part in policy.split(";"))}

    allowed, ours = directives(theirs), directives(standin.CONTENT_SECURITY_POLICY)
    for name, sources in ours.items():
        assert sources <= allowed.get(name, allowed["default-src"]), name
    # What is not named falls back to default-src, which allows nothing in both.
    assert ours["default-src"] == allowed["default-src"] == {"'none'"}
