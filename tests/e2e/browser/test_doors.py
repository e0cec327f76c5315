"""Links and places: how one gets in, how one waits, and what one is told when nothing opens."""

from __future__ import annotations

from playwright.sync_api import Browser

from tests.e2e.browser.driver import Caller, calling
from tests.e2e.browser.standin import Line

# Chromium itself tells of every refusal.
REFUSED = (r"Failed to load resource: .* 40\d",)


def closed(caller: Caller, words: str) -> None:
    """The page says `words`, and offers nothing that cannot work."""
    caller.see(words)
    assert caller.page.get_by_role("alert").is_visible()
    assert caller.page.get_by_role("button").count() == 0


class TestALink:
    def test_opens_the_line_and_leaves_the_address_bar(self, browser: Browser, line: Line) -> None:
        line.desk.access = "links"
        token = line.desk.link()
        with calling(browser, f"{line.url}/#t={token}") as caller:
            caller.talk()
            caller.hear(10)
            assert token not in caller.page.url
            assert line.desk.redeemed == 1
            caller.page.reload()
            caller.talk()
            caller.hear(5)
            assert line.desk.redeemed == 1, "the key outlives a reload"
            # Neither link nor key may ever stand where a server writes it down.
            secrets = [token, *line.desk.keys]
            assert not [r for r in line.requests if any(secret in r for secret in secrets)]
            assert caller.page.context.cookies() == []
            caller.watch.assert_clean()

    def test_tapped_a_second_time_is_still_good_on_this_device(self, browser: Browser, line: Line) -> None:
        line.desk.access = "links"
        token = line.desk.link()
        with calling(browser, f"{line.url}/#t={token}") as caller:
            caller.talk()
            caller.page.goto("about:blank")
            caller.page.goto(f"{line.url}/#t={token}")
            caller.talk()
            assert line.desk.redeemed == 1

    def test_that_opens_nothing_is_told_on_one_clear_screen(self, browser: Browser, line: Line) -> None:
        line.desk.access = "links"
        spent = line.desk.link(uses=0)
        for token in (spent, "x" * 43, spent[:20], ""):
            with calling(browser, f"{line.url}/#t={token}") as caller:
                closed(caller, "This link opens nothing")
                assert caller.page.url == f"{line.url}/"
                caller.watch.assert_clean(*REFUSED)
        assert line.conversations == []

    def test_is_needed_where_the_line_says_so(self, browser: Browser, line: Line) -> None:
        line.desk.access = "links"
        with calling(browser, line.url) as caller:
            closed(caller, "This line opens with a link")
            caller.watch.assert_clean(*REFUSED)

    def test_whose_session_was_taken_back_is_told_when_one_calls(self, browser: Browser, line: Line) -> None:
        line.desk.access = "links"
        with calling(browser, f"{line.url}/#t={line.desk.link()}") as caller:
            caller.page.get_by_role("button", name="Call Moshi").wait_for()
            caller.until(lambda: bool(line.desk.keys), 5, "redeemed link")
            line.desk.keys.clear()
            caller.press("Call Moshi")
            closed(caller, "Your link has run out")

    def test_survives_a_line_that_does_not_answer(self, browser: Browser, line: Line) -> None:
        line.desk.access = "links"
        token = line.desk.link()
        with calling(browser, "about:blank", ready=False) as caller:
            caller.page.route("**/api/links/redeem", lambda route: route.abort())
            caller.page.goto(f"{line.url}/#t={token}")
            caller.see("The line does not answer")
            caller.page.unroute("**/api/links/redeem")
            caller.press("Try again")
            caller.talk()


class TestTheQueue:
    def test_says_where_one_stands_and_calls_by_itself(self, browser: Browser, line: Line) -> None:
        line.duplex, line.desk.access, line.desk.queue = True, "links", 2
        with calling(browser, f"{line.url}/#t={line.desk.link()}") as caller:
            caller.press("Call Moshi")
            caller.until_state("queued")
            caller.see("You are number 2")
            caller.see("It may take about 2 minutes.")
            place = line.desk.place
            line.desk.tell(place, "waiting", position=1, estimated_wait_s=20)
            caller.see("You are next")
            assert line.conversations == [], "nothing is sent while one waits"
            caller.page.evaluate("""() => {
                window.rang = 0;
                const start = OscillatorNode.prototype.start;
                OscillatorNode.prototype.start = function (...at) {
                    window.rang++;
                    return start.apply(this, at);
                };
            }""")
            line.desk.your_turn(place)
            caller.until_state("talking")
            assert caller.page.evaluate("window.rang") == 2, "one hears that it is one's turn"
            caller.hear(10)
            caller.watch.assert_clean()

    def test_keeps_the_place_of_a_phone_that_slept(self, browser: Browser, line: Line) -> None:
        line.desk.access, line.desk.queue = "open", 1
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("queued")
            place = line.desk.place
            caller.until(lambda: place.streams == 1, 5, "event stream")
            caller.page.context.set_offline(True)
            # What was said meanwhile comes with the next stream: nothing twice, nothing lost.
            line.desk.tell(place, "waiting", position=1, estimated_wait_s=10)
            caller.see("It may take about a minute.")
            caller.page.context.set_offline(False)
            line.desk.your_turn(place)
            caller.until_state("talking", 60)
            assert len(line.desk.places) == 1

    def test_whose_ticket_grew_old_meanwhile_gets_another(self, browser: Browser, line: Line) -> None:
        line.desk.access, line.desk.queue, line.desk.ticket_s = "open", 1, 0.0
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("queued")
            line.desk.your_turn(line.desk.place)
            caller.until_state("talking")
            assert len(line.desk.tickets) == 1, "the old one was never shown"

    def test_can_be_left(self, browser: Browser, line: Line) -> None:
        line.desk.access, line.desk.queue = "open", 3
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("queued")
            caller.press("Stop waiting")
            caller.until_state("ended")
            caller.until(lambda: not line.desk.places, 5, "a place given back")

    def test_is_left_by_who_closes_the_page(self, browser: Browser, line: Line) -> None:
        line.desk.access, line.desk.queue = "open", 3
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("queued")
            caller.page.goto("about:blank")
            caller.until(lambda: not line.desk.places, 5, "a place given back")

    def test_a_place_that_the_line_let_go_is_asked_for_anew(self, browser: Browser, line: Line) -> None:
        line.desk.access, line.desk.queue = "open", 1
        with calling(browser, line.url) as caller:
            caller.press("Call Moshi")
            caller.until_state("queued")
            line.desk.tell(line.desk.place, "ended", reason="patience")
            line.desk.queue = 0
            caller.until_state("talking", 15)
            caller.hear(5)


def test_the_line_keeps_one_place_however_often_one_calls(browser: Browser, line: Line) -> None:
    line.desk.access = "open"
    with calling(browser, line.url) as caller:
        for button in ("Call Moshi", "Call again"):
            caller.press(button)
            caller.until_state("talking")
            caller.hear(5)
            caller.press("Hang up")
            caller.until_state("ended")
        caller.until(lambda: not line.desk.places, 5, "places given back")
        caller.watch.assert_clean()
