"""Asking a provider over HTTP: the key, repetitions, throttling, and errors that a person can act on.

The key is in one header and nowhere else: not in a URL, a log, an exception or a representation.
"""

from __future__ import annotations

import email.utils
import json as encoding
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from rental.errors import OfferGoneError, ProviderError, QuotaError, RefusedError, UnansweredError

LONGEST_WAIT_S = 60.0  # a Retry-After beyond this is a quota, not a pause
SKEW_S = 120.0
# RunPod's front door turns away clients without a name of their own.
USER_AGENT = "hotline-rental"
NO_MONEY = ("credit", "balance", "insufficient funds", "quota", "limit reached", "payment")


class Key:
    """A secret that does not show itself."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Key(…)"

    __str__ = __repr__

    def reveal(self) -> str:
        """The secret itself, for the one header that it belongs into."""
        return self._text


@dataclass
class Clock:
    """Time, as a parameter. `skew`: how far providers' Date headers are ahead of this machine, in seconds."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    skew: float = 0.0

    def there(self) -> float:
        """Seconds since 1970 by the provider's clock, which is the one that bills."""
        return self.now() + (self.skew if abs(self.skew) > SKEW_S else 0.0)


class Api:
    """One provider's HTTP interface."""

    def __init__(
        self, provider: str, base: str, key: Key, header: Callable[[str], Mapping[str, str]], clock: Clock
    ) -> None:
        self.provider, self.base, self.clock = provider, base.rstrip("/"), clock
        self._key, self._header = key, header
        self._http = httpx.Client(
            timeout=30.0, headers={"User-Agent": USER_AGENT, "Accept": "application/json"}
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        once: bool = False,
        missing: bool = False,
        attempts: int = 6,
    ) -> Any:
        """The decoded answer. Reads and deletions are repeated; with `once` nothing is that may have worked.

        `missing`: 404 and 410 answer None instead of an error.
        """
        pause, said = 1.0, ""
        for attempt in range(attempts):
            try:
                answer = self._http.request(
                    method,
                    self.base + path,
                    json=body,
                    params=query,
                    headers=self._header(self._key.reveal()),
                )
            except httpx.ConnectError as error:
                said = f"cannot be reached ({self._clean(str(error))})"
            except httpx.HTTPError as error:
                said = f"broke off ({type(error).__name__})"
                if once:
                    raise UnansweredError(f"{self.provider} {said} while it was to create a node") from None
            else:
                self._look_at_clock(answer)
                if answer.status_code == 429:
                    wait = self._retry_after(answer)
                    if wait is not None and wait > LONGEST_WAIT_S:
                        raise QuotaError(
                            f"{self.provider} has had enough questions for now and asks to wait "
                            f"{wait / 60:.0f} minutes. "
                            "Mend: wait, or ask less often."
                        )
                    said, pause = "throttles us (429)", wait or pause
                elif answer.status_code >= 500:
                    said = f"answers {answer.status_code}: {self._reason(answer)}"
                    if once:
                        raise UnansweredError(f"{self.provider} {said}, while it was to create a node")
                elif missing and answer.status_code in (404, 410):
                    return None
                elif answer.status_code >= 400:
                    raise self._refusal(answer)
                else:
                    return self._decode(answer)
            if attempt + 1 < attempts:
                self.clock.sleep(pause)
                pause = min(pause * 2, 20.0)
        raise ProviderError(
            f"{self.provider} {said}, {attempts} times in a row. Mend: see whether {self.base} is up, then "
            "try again."
        )

    def _refusal(self, answer: httpx.Response) -> Exception:
        reason = self._reason(answer)
        low = reason.lower()
        if answer.status_code == 402 or any(word in low for word in NO_MONEY):
            return QuotaError(
                f"{self.provider} rents out no more to this account: {reason}. Mend: top it up or raise its "
                "limit there."
            )
        if answer.status_code == 401:
            return RefusedError(
                f"{self.provider} does not accept the key: {reason}. Mend: make a new one there and set it "
                "again."
            )
        if answer.status_code == 403:
            return RefusedError(
                f"{self.provider} says that this key may not do that: {reason}. Mend: give it the right to "
                "rent."
            )
        if answer.status_code in (404, 409, 410) or "no_such_ask" in low or "invalid_price" in low:
            return OfferGoneError(f"{self.provider}: {reason}")
        return ProviderError(f"{self.provider} refuses this (HTTP {answer.status_code}): {reason}")

    def _decode(self, answer: httpx.Response) -> Any:
        if not answer.content.strip():
            return None
        try:
            return answer.json()
        except (encoding.JSONDecodeError, UnicodeDecodeError):
            raise ProviderError(
                f"{self.provider} answered something that is no JSON: {self._clean(answer.text[:80])!r}"
            ) from None

    def _reason(self, answer: httpx.Response) -> str:
        """The provider's own words: `msg` at Vast, `detail` at RunPod and Salad; plain text at a 429."""
        try:
            body = answer.json()
        except (encoding.JSONDecodeError, UnicodeDecodeError):
            body = answer.text
        if isinstance(body, dict):
            errors = body.get("errors")
            parts = [
                body.get("error"),
                body.get("msg") or body.get("message") or body.get("detail") or body.get("title"),
            ]
            parts += errors if isinstance(errors, list) else []
            body = ": ".join(str(part) for part in parts if part)
        return self._clean(str(body).strip()[:300] or answer.reason_phrase)

    def _clean(self, text: str) -> str:
        secret = self._key.reveal()
        return text.replace(secret, "…") if secret else text

    def _look_at_clock(self, answer: httpx.Response) -> None:
        if date := answer.headers.get("Date"):
            try:
                self.clock.skew = email.utils.parsedate_to_datetime(date).timestamp() - self.clock.now()
            except (ValueError, TypeError):
                return

    @staticmethod
    def _retry_after(answer: httpx.Response) -> float | None:
        text = answer.headers.get("Retry-After", "")
        return float(text) if text.isdigit() else None
