"""Takes pictures of the page: every screen, on a phone and a desktop, dark and light; the README's pair.

python -m tests.e2e.browser.screenshot --out /tmp/screens                    # all, on the stand-in
python -m tests.e2e.browser.screenshot --url https://127.0.0.1:8998 --pair docs/images/page.png
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.e2e.browser import standin
from tests.e2e.browser.driver import Caller, calling, launch, speech

SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
SCHEMES = ("dark", "light")
SENTENCE = (
    "Hello! Lovely to hear from you. I can listen while I talk, so feel free to interrupt me at any time."
)
QUESTION = {
    "id": "q1",
    "question": "Deploy to staging or to production?",
    "context": "All 214 tests are green. Production has visitors at the moment; staging has none.",
    "choices": ["staging", "production"],
    "asked_by": "claude",
    "state": "open",
    "deadline": None,
    "answer": None,
    "execution_id": "e1",
}
EXECUTION = {
    "id": "e1",
    "state": "waiting_for_input",
    "instruction": "Deploy version 1.4.",
    "result": None,
    "error": None,
}
CONVERSATION = (
    ("Hi there, can you hear me while you talk?", True),
    ("That is", False),
    ("That is good to know.", True),
    ("So what shall we", False),
)
SPOKEN = (
    ("Please look at the backups.", True),
    ("Delete everything before May, then tell me what is left.", True),
)
STEPS = [
    {"text": "Look at the backups.", "destructive": False},
    {"text": "Delete everything before May.", "destructive": True},
    {"text": "Tell me what is left.", "destructive": False},
]
ELSEWHERE = "navigator.locks?.request('hotline.call', () => new Promise(() => {}))"
"""As if another tab had a call."""
REFUSED = (
    "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))"
)


@contextmanager
def _opened(
    browser: Browser, url: str, size: str, scheme: str, script: str | None = None
) -> Iterator[Caller]:
    width, height = SIZES[size]
    with calling(
        browser,
        url,
        script=script,
        viewport={"width": width, "height": height},
        device_scale_factor=2 if size == "phone" else 1,
        color_scheme=scheme,
    ) as caller:
        caller.page.wait_for_timeout(300)
        yield caller


def screens(browser: Browser, line: standin.Line, out: Path) -> None:
    """Every screen, as <screen>-<size>-<scheme>.png."""
    out.mkdir(parents=True, exist_ok=True)
    line.authority = "/hotline-ca.pem"
    for size in SIZES:
        for scheme in SCHEMES:

            def shoot(caller: Caller, name: str, ending: str = f"{size}-{scheme}.png") -> None:
                caller.page.wait_for_timeout(250)
                caller.page.screenshot(path=out / f"{name}-{ending}")

            with _opened(browser, line.url, size, scheme) as caller:
                shoot(caller, "1-before")
                caller.page.locator("summary").click()
                caller.page.locator("details").scroll_into_view_if_needed()
                caller.page.screenshot(path=out / f"2-certificate-{size}-{scheme}.png", full_page=True)
                caller.press("Check microphone and line")
                caller.press("Test the microphone")
                caller.see("You can be heard.")
                caller.press("Check the line (two seconds)")
                caller.see("to the line and back")
                shoot(caller, "14-check")
                caller.press("Done")
                caller.talk()
                caller.hear(90)
                shoot(caller, "3-talking")
                caller.press("Mute")
                shoot(caller, "4-muted")
                caller.press("Unmute")
                line.refusal = ("starting", "The voice engine is loading its weights.", 1013)
                line.kill()
                caller.until_state("waiting")
                caller.page.wait_for_timeout(2500)
                shoot(caller, "5-waiting")
                line.refusal = None
                caller.until_state("forgot", 30)
                shoot(caller, "6-forgot")
                caller.press("Start anew")
                caller.until_state("talking", 30)
                caller.hear(40)
                caller.press("Hang up")
                shoot(caller, "7-ended")
            with _opened(browser, line.url, size, scheme, REFUSED) as caller:
                caller.press("Call Moshi")
                caller.until_state("failed")
                shoot(caller, "8-refused")
            line.refusal = ("line_full", "Somebody else is talking with Moshi on this line.", 1013)
            with _opened(browser, line.url, size, scheme) as caller:
                caller.press("Call Moshi")
                caller.until_state("failed")
                shoot(caller, "9-busy")
            line.refusal = None
            line.desk.access, line.desk.queue, line.duplex = "links", 2, True
            with _opened(browser, f"{line.url}/#t={line.desk.link(uses=0)}", size, scheme) as caller:
                caller.see("This link opens nothing")
                shoot(caller, "10-invalid")
            with _opened(browser, f"{line.url}/#t={line.desk.link()}", size, scheme) as caller:
                caller.press("Call Moshi")
                caller.until_state("queued")
                shoot(caller, "11-queue")
                line.desk.queue = 0
                line.desk.your_turn(line.desk.place)
                caller.until_state("talking")
                for text, final in CONVERSATION:
                    line.tell(type="transcript", who="caller", text=text, final=final, start_ms=0, end_ms=1)
                    caller.hear(20)
                shoot(caller, "12-both")
                line.kill()
                caller.until(lambda: caller.number("resumed") == 1, 20, "the same conversation")
                shoot(caller, "13-resumed")
            line.desk.question, line.desk.execution = dict(QUESTION), dict(EXECUTION)
            token = line.desk.link("answer", question_id="q1", execution_id="e1")
            with _opened(browser, f"{line.url}/#t={token}", size, scheme) as caller:
                caller.see("claude asks")
                shoot(caller, "15-question")
                caller.talk()
                caller.hear(20)
                line.tell(type="turn_end", text="Staging first, please.")
                line.tell(type="transcript", who="caller", text="Staging first, please.", final=True)
                caller.see("Staging first, please.")
                shoot(caller, "16-answering")
                caller.press("Send answer")
                caller.see("Answered.")
                line.desk.run(state="completed", result="Deployed to staging. 14 checks passed.")
                caller.see("14 checks passed")
                caller.press("Hang up")
                shoot(caller, "17-done")
            line.desk.tasks, line.desk.proposal = True, STEPS
            with _opened(browser, f"{line.url}/#t={line.desk.link()}", size, scheme) as caller:
                caller.talk()
                for text, final in SPOKEN:
                    line.tell(type="transcript", who="caller", text=text, final=final, start_ms=0, end_ms=1)
                    caller.hear(10)
                caller.press("Hang up")
                caller.see("Make a task of this call")
                shoot(caller, "18-offer")
                caller.press("Make a task of this call")
                caller.see("Look twice")
                shoot(caller, "19-task")
                caller.press("Hand over")
                caller.see("It is about to begin.")
                line.desk.run(state="running")
                caller.see("It is being done.")
                shoot(caller, "20-running")
                line.desk.run(state="completed")
            with _opened(browser, f"{line.url}/#t={line.desk.link()}", size, scheme, ELSEWHERE) as caller:
                caller.press("Call Moshi")
                caller.see("You are in a call already")
                shoot(caller, "21-elsewhere")
            line.desk.access, line.desk.tasks, line.duplex = None, False, False


def sheets(browser: Browser, taken: Path, out: Path) -> None:
    """One picture per screen: phone and desktop, dark and light, side by side."""
    out.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1480, "height": 470})
    names = sorted({path.stem.removesuffix("-phone-dark") for path in taken.glob("*-phone-dark.png")})
    for name in names:
        images = "".join(
            f'<img src="data:image/png;base64,'
            f'{base64.b64encode((taken / f"{name}-{size}-{scheme}.png").read_bytes()).decode()}">'
            for size in SIZES
            for scheme in SCHEMES
        )
        page.set_content(
            "<style>body { margin: 10px; display: flex; gap: 10px; background: #8a9299 }"
            f" img {{ height: 450px; width: auto; max-width: 520px; object-fit: contain }}</style>{images}"
        )
        page.screenshot(path=out / f"{name.split('-', 1)[1]}.jpg", type="jpeg", quality=78)
    page.close()


def pair(browser: Browser, url: str, path: Path) -> None:
    """The README's picture: a call on a desktop in the light, and on a phone in the dark, side by side."""
    pictures = {}
    for size, scheme in (("desktop", "light"), ("phone", "dark")):
        with _opened(browser, url, size, scheme) as caller:
            caller.talk()
            caller.hear(100)
            caller.page.locator(".hints .note").wait_for(state="detached", timeout=60_000)
            pictures[size] = base64.b64encode(caller.page.screenshot()).decode()
            caller.press("Hang up")
            caller.until_state("ended")
    page = browser.new_page(viewport={"width": 1240, "height": 720}, device_scale_factor=1.5)
    page.set_content(
        f"""<style>
        body {{ margin: 0; height: 720px; display: flex; align-items: center; justify-content: center;
                gap: 36px; background: linear-gradient(160deg, #dfe9e6, #efe6da) }}
        img {{ display: block }}
        .desktop {{ width: 836px; border-radius: 14px; box-shadow: 0 24px 60px -18px #10202a66 }}
        .phone {{ width: 280px; border-radius: 34px; border: 7px solid #05080a;
                  box-shadow: 0 24px 60px -14px #10202a99 }}
        </style>
        <img class="desktop" src="data:image/png;base64,{pictures["desktop"]}">
        <img class="phone" src="data:image/png;base64,{pictures["phone"]}">"""
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    page.close()


def main() -> None:
    """Take the pictures that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.browser.screenshot", description=__doc__)
    parser.add_argument("--url", help="a real line; without it the stand-in")
    parser.add_argument(
        "--page", type=Path, default=Path("client/dist"), help="the built page, for the stand-in"
    )
    parser.add_argument("--out", type=Path, help="folder for every screen (stand-in only)")
    parser.add_argument("--sheets", type=Path, help="folder for one picture per screen, made from --out's")
    parser.add_argument("--pair", type=Path, help="the README's picture")
    options = parser.parse_args()
    if not options.url and not (options.page / "index.html").exists():
        parser.error(f"{options.page} holds no built page. Mend: (cd client && npm run build)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright, speech(Path(folder) / "speech.wav"))
        with standin.running(options.page) as line:
            line.words = tuple(f" {word}" for word in SENTENCE.split())
            if options.out and not options.url:
                screens(browser, line, options.out)
                if options.sheets:
                    sheets(browser, options.out, options.sheets)
            if options.pair:
                pair(browser, options.url or line.url, options.pair)
        browser.close()


if __name__ == "__main__":
    main()
