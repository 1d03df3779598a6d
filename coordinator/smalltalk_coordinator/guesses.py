"""Wrong join tokens: who gave them, and how long that address must wait now.

Rules: an address that gives wrong tokens is not listened to for a time that doubles with each,
from a second to ten minutes; the first few are free, since people paste old tokens. An attempt
during the wait is refused unread and costs nothing, so nothing is held for it. While wrong
tokens come in faster than a few a second, from wherever, each costs the longest wait. An
address that gave none is never held up by others. The number of addresses that are remembered
is bounded; those that were heard of last stay. What an address is, `calls.address_of` says.
Times are arguments; what is lost in a restart is forgiven.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

FREE_TRIES = 3
FIRST_WAIT_S, LAST_WAIT_S = 1.0, 600.0
FORGIVEN_S = 3600.0  # after the last wrong token of an address
ADDRESSES_MAX = 4096
ALL_TRIES = 60.0  # wrong tokens of all addresses at once before each costs the longest wait
ALL_TRIES_PER_S = 1.0


@dataclass
class _Address:
    wrong: int = 0
    wrong_at: float = 0.0
    free_at: float = 0.0


class Guesses:
    """What all addresses have tried."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._left, self._left_at = ALL_TRIES, 0.0

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until this address may try; 0: now."""
        known = self._addresses.get(address)
        return max(0.0, known.free_at - now) if known else 0.0

    def wrong(self, address: str, now: float) -> int:
        """Note a wrong token; returns how many came from there of late."""
        known = self._addresses.pop(address, None)
        if known is None or now - known.wrong_at > FORGIVEN_S:
            known = _Address()
        self._addresses[address] = known
        while len(self._addresses) > ADDRESSES_MAX:
            self._addresses.popitem(last=False)
        known.wrong += 1
        known.wrong_at = now
        wait_s = 0.0
        if known.wrong > FREE_TRIES:
            doublings = min(known.wrong - FREE_TRIES - 1, 32)
            wait_s = min(FIRST_WAIT_S * 2.0**doublings, LAST_WAIT_S)
        known.free_at = now + (LAST_WAIT_S if self._too_many(now) else wait_s)
        return known.wrong

    def right(self, address: str) -> None:
        """A token from there was right: its mistakes are forgiven."""
        self._addresses.pop(address, None)

    def _too_many(self, now: float) -> bool:
        """Take one of the tries that all addresses share."""
        if self._left_at:
            gained = ALL_TRIES_PER_S * max(0.0, now - self._left_at)
            self._left = min(ALL_TRIES, self._left + gained)
        self._left_at = now
        if self._left < 1.0:
            return True
        self._left -= 1.0
        return False
