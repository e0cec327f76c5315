"""The synthetic caller: speaks a WAV into any server of Moshi's protocol and measures the line.

    speech = caller.prepare(seconds=20)
    report = await caller.speak("https://HOST:8998", speech, ca=Path("ca.pem"))

One `Speech` serves any number of callers at once. Needs numpy, sphn and aiohttp; `caller.judge` needs
moonshine-voice and jiwer as well. `caller.echo` is an engine for tests.
"""

from caller.errors import AddressError, CallerError, JudgeError, SpeechError
from caller.line import Patience, Recording, call
from caller.report import Judgement, Limits, Report, evaluate, speak, table
from caller.speech import Speech, prepare

__all__ = [
    "AddressError",
    "CallerError",
    "JudgeError",
    "Judgement",
    "Limits",
    "Patience",
    "Recording",
    "Report",
    "Speech",
    "SpeechError",
    "call",
    "evaluate",
    "prepare",
    "speak",
    "table",
]
