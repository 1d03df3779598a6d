"""The wall clock jumps an hour either way, between restarts and while serving."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.hosts import enter, open_host, run

from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.journal import Journal

HOUR_S = 3600.0
SECRET = hashlib.sha256(b"secret").hexdigest()


@dataclass
class Machine:
    """A machine's two clocks."""

    wall_s: float = 1.7e9
    monotonic_s: float = 50.0

    def clock(self, not_before: float = 0.0) -> SystemClock:
        return SystemClock(not_before, wall=lambda: self.wall_s, monotonic=lambda: self.monotonic_s)

    def live(self, seconds: float) -> None:
        """Time that passes on both."""
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.mark.parametrize("jump", [-HOUR_S, HOUR_S])
def test_a_jump_while_serving_is_not_seen(jump: float) -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now()
    machine.wall_s += jump
    machine.live(3.0)
    assert clock.now() == before + 3.0


@pytest.mark.parametrize("jump", [-HOUR_S, -1.0])
def test_a_process_that_starts_in_the_past_goes_on_from_the_last_event(
    jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    last = machine.clock().now()
    machine.wall_s += jump
    clock = machine.clock(not_before=last)
    assert clock.now() == last
    machine.live(2.0)
    assert clock.now() == last + 2.0
    assert f"{-jump:.0f} s behind the journal's last event" in caplog.text


def test_a_process_that_starts_later_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    assert machine.clock(not_before=machine.wall_s - 5).now() == machine.wall_s
    assert not caplog.text


@pytest.mark.parametrize("jump", [-HOUR_S, HOUR_S])
def test_a_restart_after_a_jump_keeps_events_in_order_and_leases_in_time(
    tmp_path: Path, jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()

    async def first() -> None:
        host = open_host(tmp_path, clock=machine.clock())
        host.start()
        node_id = await enter(host)
        order = await host.ask(msg.Exchange(node_id, 1))
        assert isinstance(order, msg.Order)
        assert order.unit
        await host.stop()

    async def second() -> None:
        journal = Journal(tmp_path / "journal.sqlite")
        clock = machine.clock(not_before=journal.last_at)
        journal.close()
        host = open_host(tmp_path, clock=clock)
        host.start()
        now = clock.now()
        wait_s = host.coordinator.leases.frozen_until - now
        assert wait_s == pytest.approx(host.manifest.config.run.lease_s)
        await host.ask(msg.MakeInvite(SECRET, now + 60))
        await host.stop()

    run(first)
    machine.wall_s += jump
    with caplog.at_level(logging.WARNING):
        run(second)
    assert ("behind the journal's last event" in caplog.text) == (jump < 0)
    times = [event.at for event in Journal(tmp_path / "journal.sqlite").events()]
    assert times == sorted(times)
