"""Who guesses is slowed down, and who asks for too much. nginx counts requests; this, what they mean.

A token or key of 256 bits cannot be guessed; what counting failures spares is the database, and the log.
In memory: a restart forgives everybody, and one process answers for a line.
"""

from __future__ import annotations

import ipaddress
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from orchestrator.problems import Problem

FAILURES = RateLimitItemPerMinute(20)
"""Wrong keys, links and tickets of one client."""
CALLS = RateLimitItemPerMinute(30)
"""Wishes for a call of one session: a page that tries again every two seconds is still served."""
LINKS = RateLimitItemPerMinute(120)
"""Links made with one token: a program gone wild does not fill the database."""


def client_of(host: str | None) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "nobody"
    if address.version == 4:
        return address.compressed
    return str(ipaddress.ip_network((address, 64), strict=False))


class Throttle:
    """What was counted. One per process."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check_failures(self, client: str) -> None:
        """Refuse a client that failed too often lately. Raises Problem 429."""
        if not self._limiter.test(FAILURES, "failures", client):
            raise Problem(
                429,
                "too_many_failures",
                "Too many wrong keys or links came from your address. Wait a minute, then try the right one.",
                headers={"Retry-After": str(self._seconds(FAILURES, "failures", client))},
            )

    def failed(self, client: str) -> None:
        """Count a failure."""
        self._limiter.hit(FAILURES, "failures", client)

    def count(self, limit: RateLimitItem, what: str, who: str) -> None:
        """Count one more of something. Raises Problem 429 when that is too many."""
        if not self._limiter.hit(limit, what, who):
            raise Problem(
                429,
                "too_many_requests",
                f"That is more than {limit.amount} a minute. Wait a little, then go on more slowly.",
                headers={"Retry-After": str(self._seconds(limit, what, who))},
            )

    def _seconds(self, limit: RateLimitItem, *of: str) -> int:
        return max(1, int(self._limiter.get_window_stats(limit, *of).reset_time - time.time()) + 1)
