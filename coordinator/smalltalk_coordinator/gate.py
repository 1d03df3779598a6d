"""How often and how much one caller may ask for: told, slowed, dropped, forgiven.

Rules: a caller (a node by its certificate; on the newcomers' port an address) has a budget of
calls and of bytes each way, which fills with time and is full again when a result of it counts:
work is never slowed. Who overdraws is told the limit and how long to wait; who goes on nevertheless
waits for that answer; who goes on after that is not heard for minutes, and then begins anew.
Bytes are never refused, only paced. Of calls that are under way the oldest gives way: it is
most likely one whose line broke. Calls that come all at once take turns, a few milliseconds
apart, so that nobody else waits behind a row of them. What is remembered is bounded. Pure: time
is an argument, waiting and refusing are the carrier's part (`guard`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from smalltalk_fed.errors import SlowDown
from smalltalk_fed.wire import limits
from smalltalk_fed.wire.limits import CallLimits

PACE_MAX_S = 5.0  # between two parts, however far a budget is overdrawn

Direction = Literal["up", "down"]


class Overrun(SlowDown):
    """A call that exceeds a limit; its refusal is kept back for `hold_s` seconds."""

    def __init__(self, what: str, wait_s: float, hold_s: float) -> None:
        super().__init__(what, wait_s)
        self.hold_s = hold_s


@dataclass
class _Budget:
    level: float
    at: float

    def filled(self, capacity: float, per_s: float, now: float) -> float:
        """What is there now."""
        self.level = min(capacity, self.level + per_s * max(0.0, now - self.at))
        self.at = now
        return self.level


@dataclass
class _Caller:
    calls: _Budget
    turns: _Budget
    up: _Budget
    down: _Budget
    refused: int = 0  # calls, since all was forgiven
    strikes: float = 0.0  # refusals, less what time forgave
    refused_at: float = 0.0
    dropped_until: float = -math.inf
    under_way: dict[str, list[object]] = field(default_factory=dict)  # by method, oldest first


@dataclass(frozen=True)
class Excess:
    """What `status` says of a caller that was refused for speed lately."""

    caller: str
    refused: int  # calls
    dropped_for_s: float  # from now on; 0: it is heard


class Gate:
    """The budgets of one port's callers."""

    def __init__(
        self, allowed: CallLimits, on_dropped: Callable[[str, str], None] = lambda who, why: None
    ) -> None:
        """`on_dropped(caller, reason)` hears of every caller that is dropped."""
        self._allowed, self._on_dropped = allowed, on_dropped
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    # ------------------------------------------------------------------------------- calls

    def enter(self, who: str, method: str, now: float) -> float:
        """Let a call in, before anything is done for it; returns the seconds until its turn.

        Raises:
            Overrun: the caller asks too often.
        """
        caller, allowed = self._caller(who, now), self._allowed
        if now < caller.dropped_until:
            wait_s = caller.dropped_until - now
            raise Overrun(f"{who} is not heard for {wait_s:.0f} s more: it went on calling after "
                          f"{limits.DROP_AFTER} refusals", wait_s, limits.HOLD_S)  # fmt: skip
        cost = allowed.costs.get(method, 1.0)
        level = caller.calls.filled(allowed.calls_burst, allowed.calls_per_s, now)
        if level < cost:
            self._refuse(who, caller, (cost - level) / allowed.calls_per_s, now)
        caller.calls.level -= cost
        turns = caller.turns.filled(limits.TURNS_AT_ONCE, 1 / limits.TURN_S, now)
        caller.turns.level -= 1
        return max(0.0, (1 - turns) * limits.TURN_S)

    def begin(self, who: str, method: str, call: object, now: float) -> object | None:
        """The call's turn has come; `leave` must follow.

        Returns the caller's oldest call of this method if it has too many: it must end.
        """
        allowed = self._allowed
        under_way = self._caller(who, now).under_way.setdefault(method, [])
        under_way.append(call)
        most = allowed.in_flight.get(method, allowed.in_flight_else)
        return under_way.pop(0) if len(under_way) > most else None

    def leave(self, who: str, method: str, call: object) -> None:
        """The call is over; one that gave way is known no more."""
        caller = self._callers.get(who)
        if caller is None or call not in (under_way := caller.under_way.get(method, [])):
            return
        under_way.remove(call)
        if not under_way:
            del caller.under_way[method]

    def charge(self, who: str, calls: float, now: float) -> None:
        """A call turned out costly, or wrong."""
        self._caller(who, now).calls.level -= calls

    def _refuse(self, who: str, caller: _Caller, wait_s: float, now: float) -> None:
        forgiven = (now - caller.refused_at) / limits.FORGIVE_S
        if forgiven >= caller.strikes:
            caller.refused, caller.strikes = 0, forgiven
        caller.strikes += 1 - forgiven
        caller.refused, caller.refused_at = caller.refused + 1, now
        allowed, wait_s = self._allowed, max(limits.WAIT_S, wait_s)
        what = (
            f"{who} asked more than {allowed.calls_per_s:g} times a second "
            f"(at most {allowed.calls_burst:.0f} times at once)"
        )
        if caller.strikes >= limits.DROP_AFTER:
            caller.dropped_until = now + limits.DROP_S
            caller.calls = _Budget(allowed.calls_burst, caller.dropped_until)
            caller.strikes = 0.0
            reason = f"{what} and went on after {limits.DROP_AFTER} refusals"
            self._on_dropped(who, f"{reason}; it is not heard for {limits.DROP_S:.0f} s")
            raise Overrun(f"{reason}; ask again in {limits.DROP_S:.0f} s", limits.DROP_S,
                          limits.HOLD_S)  # fmt: skip
        hold_s = limits.HOLD_S if caller.strikes > limits.TOLD_MAX else 0.0
        raise Overrun(f"{what}; ask again in {wait_s:.0f} s", wait_s, hold_s)

    # ------------------------------------------------------------------------------- bytes

    def pace_s(self, who: str, direction: Direction, size: int, now: float) -> float:
        """Count bytes that moved; returns for how long the next ones must wait."""
        caller, allowed = self._caller(who, now), self._allowed
        budget = caller.up if direction == "up" else caller.down
        capacity = allowed.bytes_up if direction == "up" else allowed.bytes_down
        per_s = capacity / limits.BUDGET_S
        budget.level = budget.filled(capacity, per_s, now) - size
        return min(PACE_MAX_S, max(0.0, -budget.level / per_s))

    # ----------------------------------------------------------------------------- the rest

    def progress(self, who: str, now: float) -> None:
        """A result of the caller counts, or weights of it are kept: its budgets are full."""
        caller, allowed = self._caller(who, now), self._allowed
        caller.calls = _Budget(allowed.calls_burst, now)
        caller.up = _Budget(allowed.bytes_up, now)
        caller.down = _Budget(allowed.bytes_down, now)

    def report(self, now: float) -> list[Excess]:
        """Callers that were refused lately, or are dropped now."""
        return [
            Excess(who, caller.refused, max(0.0, caller.dropped_until - now))
            for who, caller in self._callers.items()
            if now < caller.dropped_until
            or now - caller.refused_at < caller.strikes * limits.FORGIVE_S
        ]

    def _caller(self, who: str, now: float) -> _Caller:
        caller = self._callers.get(who)
        if caller is None:
            allowed = self._allowed
            while len(self._callers) >= allowed.callers_max:
                self._callers.popitem(last=False)
            caller = self._callers[who] = _Caller(
                _Budget(allowed.calls_burst, now),
                _Budget(limits.TURNS_AT_ONCE, now),
                _Budget(allowed.bytes_up, now),
                _Budget(allowed.bytes_down, now),
            )
        self._callers.move_to_end(who)
        return caller
