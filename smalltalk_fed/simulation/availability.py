"""When volunteers' machines are on: days and nights, short breaks, and leaving for good.

After what is known of BOINC's volunteers: about half of the machines are away at any time;
some are never switched off, most are on for some hours around an hour of their own, in three
parts of the world; now and then one restarts; each leaves for good some day. Rules: a
machine's life is drawn from streams of its own.
"""

from __future__ import annotations

import math

from smalltalk_fed.simulation.machine import Machine
from smalltalk_fed.simulation.scenario import Fleet
from smalltalk_fed.simulation.world import DAY_S, START_S, World

_HOURS_ON, _HOURS_SIGMA = 10.5, 3.5
_ZONES_H = (20.0, 2.0, 12.0)  # evenings of Europe, America, Asia, in the world's hours
_ZONE_SHARES = (0.45, 0.35, 0.2)
_SKIPPED_DAYS = 0.08
_BREAKS_PER_DAY = 0.25  # restarts while on
_BREAK_S = 600.0
_LEAVES, _SLEEPS = 0.4, 0.2  # how a day ends: a clean stop, a closed lid; else it is just gone


class Life:
    """One machine's comings and goings."""

    def __init__(self, world: World, fleet: Fleet, machine: Machine) -> None:
        self._world, self._machine = world, machine
        self._rng = rng = world.stream("availability", machine.number)
        self._always_on = rng.random() < fleet.always_on
        late = rng.random() < fleet.late_share
        arrives_s = rng.uniform(0.0, fleet.late_s if late else fleet.arrive_within_s)
        self.ends_at = world.now + arrives_s + rng.expovariate(1.0 / (fleet.life_days * DAY_S))
        zone = rng.choices(_ZONES_H, _ZONE_SHARES)[0]
        self._middle_h = zone + rng.gauss(0.0, 2.0)
        self._hours_on = min(22.0, max(3.0, rng.gauss(_HOURS_ON, _HOURS_SIGMA)))
        self._next_break = math.inf
        world.after(arrives_s, self._arrive)
        world.at(self.ends_at, self._leave_for_good)

    def _arrive(self) -> None:
        if self._always_on:
            self._machine.switch_on()
            self._plan_break(math.inf)
        else:
            self._plan_day(int(self._world.elapsed_s / DAY_S) - 1)

    def _plan_day(self, day: int) -> None:
        """The first stretch of being on that ends in the future, from `day` on."""
        rng, now = self._rng, self._world.now
        while True:
            middle = START_S + day * DAY_S + 3600.0 * (self._middle_h + rng.gauss(0.0, 1.0))
            length_s = 3600.0 * self._hours_on * rng.lognormvariate(0.0, 0.2)
            begin, end = middle - length_s / 2, middle + length_s / 2
            day += 1
            if end > now and rng.random() >= _SKIPPED_DAYS:
                break
        self._world.at(begin, self._come, end, day)

    def _come(self, end: float, day: int) -> None:
        if self._world.now >= self.ends_at:
            return
        self._machine.switch_on()
        self._machine.wake()
        self._plan_break(end)
        self._world.at(end, self._go, day)

    def _go(self, day: int) -> None:
        manner = self._rng.random()
        if manner < _SLEEPS:
            self._machine.sleep()
        else:
            self._machine.switch_off(clean=manner < _SLEEPS + _LEAVES)
        self._plan_day(day)

    def _plan_break(self, end: float) -> None:
        at = self._world.now + self._rng.expovariate(_BREAKS_PER_DAY / DAY_S)
        length_s = _BREAK_S * self._rng.lognormvariate(0.0, 0.7)
        if at + length_s < end:
            self._world.at(at, self._break, length_s, end)

    def _break(self, length_s: float, end: float) -> None:
        if self._world.now < self.ends_at and self._machine.on:
            self._machine.switch_off(clean=False)
            self._world.after(length_s, self._back, end)

    def _back(self, end: float) -> None:
        if self._world.now < min(end, self.ends_at):
            self._machine.switch_on()
            self._plan_break(end)

    def _leave_for_good(self) -> None:
        self._machine.switch_off(clean=self._rng.random() < _LEAVES)
