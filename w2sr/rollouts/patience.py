"""How long to wait for a server that fails, and when to stop waiting."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

WARN_EVERY_S = 30.0
"""A failing server is spoken of at most this often."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class FailedTry(Exception):
    """One try that may succeed later. `retry_after_s` is how long the server asks us to wait, if it says."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GaveUp(Exception):
    """The last FailedTry's message, after patience ended."""


class Patience:
    """Tries again with exponential back-off until a call succeeds, or until nothing has for `give_up_after_s`.

    Calls share one patience: as long as any of them succeeds, the others go on. So a request that fails for ever
    ends a run only after all others were answered, and a dead server ends it after `give_up_after_s`.

    Args:
        backoff_s: the first wait, in seconds; it doubles with every try. Jitter takes up to half of it away.
        backoff_limit_s: the longest wait. A longer Retry-After of the server is honoured all the same.
        give_up_after_s: seconds without any success after which a failing call raises GaveUp, rather than wait longer.
    """

    def __init__(self, backoff_s: float, backoff_limit_s: float, give_up_after_s: float) -> None:
        self.backoff_s, self.backoff_limit_s, self.give_up_after_s = backoff_s, backoff_limit_s, give_up_after_s
        self._last_success = self._last_warning = float("-inf")
        self._jitter = random.Random()  # decides when we ask, never what is sampled

    async def persist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """What `call` returns, once it does not raise FailedTry. Anything else that it raises is raised."""
        failing_since = None
        for num_failed in itertools.count():
            try:
                result = await call()
            except FailedTry as failure:
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                wait_s = max(self.wait_s(num_failed), failure.retry_after_s)
                if now + wait_s > max(failing_since, self._last_success) + self.give_up_after_s:
                    raise GaveUp(str(failure)) from failure
                self._warn(failure, wait_s, now)
                await asyncio.sleep(wait_s)
            else:
                self._last_success = time.monotonic()
                return result
        raise AssertionError("itertools.count ends never")

    def wait_s(self, num_failed: int) -> float:
        """Seconds to wait after this many earlier failures, with jitter."""
        longest = min(self.backoff_limit_s, self.backoff_s * 2.0 ** min(num_failed, 60))
        return longest * self._jitter.uniform(0.5, 1.0)

    def _warn(self, failure: FailedTry, wait_s: float, now: float) -> None:
        if now >= self._last_warning + WARN_EVERY_S:
            self._last_warning = now
            _log.warning("%s; trying again in %.1f s, and for up to %g s.", failure, wait_s, self.give_up_after_s)


def retry_after_s(header: str | None, now: datetime | None = None) -> float:
    """Seconds of a Retry-After header: a number of seconds, or a date (RFC 9110, 10.2.3); 0 where it is neither.

    >>> retry_after_s("7"), retry_after_s(None), retry_after_s("soon")
    (7.0, 0.0, 0.0)
    >>> retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", datetime(2015, 10, 21, 7, 27, 30, tzinfo=UTC))
    30.0
    """
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:  # a server may write anything there; then our own back-off holds
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
