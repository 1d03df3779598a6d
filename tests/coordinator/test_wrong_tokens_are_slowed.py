"""Guessing tokens: the address that does it waits, nobody else does."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
import pytest
from smalltalk_coordinator.calls import address_of
from smalltalk_coordinator.guesses import (
    ADDRESSES_MAX,
    ALL_TRIES,
    FORGIVEN_S,
    FREE_TRIES,
    LAST_WAIT_S,
    Guesses,
)
from support.served_run import ServedRun

from smalltalk_fed.core import messages as msg
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.certificates import make_key, make_request
from smalltalk_fed.wire.token import new_secret, secret_sha256


def test_a_few_mistakes_are_free_then_the_wait_doubles() -> None:
    tried, now, waits = Guesses(), 1000.0, []
    for _ in range(FREE_TRIES + 12):
        tried.wrong("a", now)
        waits.append(tried.wait_s("a", now))
        now += waits[-1] + 0.5
    assert waits[:FREE_TRIES] == [0.0] * FREE_TRIES
    assert waits[FREE_TRIES : FREE_TRIES + 4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LAST_WAIT_S


def test_the_wait_passes_and_an_hour_forgives() -> None:
    tried = Guesses()
    for _ in range(FREE_TRIES + 3):
        tried.wrong("a", 0.0)
    assert tried.wait_s("a", 1.0) == 3.0
    assert tried.wait_s("a", 4.0) == 0.0
    assert tried.wrong("a", FORGIVEN_S + 1) == 1
    assert tried.wait_s("a", FORGIVEN_S + 1) == 0.0


def test_a_right_token_forgives_and_others_are_not_held_up() -> None:
    tried = Guesses()
    for _ in range(FREE_TRIES + 1):
        tried.wrong("a", 0.0)
    assert tried.wait_s("b", 0.0) == 0.0
    tried.right("a")
    assert tried.wait_s("a", 0.0) == 0.0


def test_when_they_come_from_everywhere_each_costs_the_longest_wait() -> None:
    tried = Guesses()
    for number in range(int(ALL_TRIES)):
        tried.wrong(f"a{number}", 1.0)
    assert tried.wait_s("a0", 1.0) == 0.0
    tried.wrong("late", 1.0)
    assert tried.wait_s("late", 1.0) == LAST_WAIT_S
    assert tried.wait_s("who tried nothing", 1.0) == 0.0
    tried.wrong("later", 1.0 + ALL_TRIES)
    assert tried.wait_s("later", 1.0 + ALL_TRIES) == 0.0


def test_only_so_many_addresses_are_remembered() -> None:
    tried = Guesses()
    for _ in range(FREE_TRIES + 5):
        tried.wrong("first", 0.0)
    for number in range(ADDRESSES_MAX):
        tried.wrong(f"a{number}", 0.0)
    assert len(tried._addresses) == ADDRESSES_MAX
    assert tried.wait_s("first", 0.0) == 0.0


@dataclass
class Caller:
    """As much of gRPC's context as says where somebody calls from."""

    where: str

    def peer(self) -> str:
        return self.where


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:203.0.113.7:51234", "203.0.113.7"),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:51234", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:203.0.113.7%5D:51234", "203.0.113.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:51234", "fe80::/64"),
        ("unix:/a/path", "unix:/a/path"),
    ],
)
def test_a_peer_is_counted_by_its_address(peer: str, address: str) -> None:
    assert address_of(Caller(peer)) == address


def enrol(run: ServedRun, secret: bytes) -> str:
    """Try a token; the refusal, or the node's id."""
    request = pb.EnrolRequest(
        secret=secret, certificate_request=make_request(make_key(), "box"), name="box"
    )
    with run.enrolment() as stub:
        try:
            node_id: str = stub.Enrol(request, timeout=30.0).node_id
        except grpc.RpcError as error:
            return str(error.details())
    return node_id


def test_over_the_enrolment_port_it_is_said_and_logged_and_passes(
    served: ServedRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "smalltalk.coordinator")
    right = new_secret()
    served.ask(msg.MakeInvite(secret_sha256(right), served.clock.now() + 3600))
    for _ in range(FREE_TRIES + 1):
        assert "not made by this run" in enrol(served, new_secret())
    said = enrol(served, right)  # it is not even looked at
    assert said.startswith("too many wrong tokens came from 127.0.0.1; wait 1 s")
    logged = [r.getMessage() for r in caplog.records if "wrong token" in r.getMessage()]
    assert len(logged) == FREE_TRIES + 1
    assert logged[-1].startswith(f"wrong token from 127.0.0.1 ({FREE_TRIES + 1} of late): ")
    served.clock.advance(1.0)
    assert enrol(served, right).startswith("n-")
    for _ in range(2):  # the mistakes are forgiven
        assert "not made by this run" in enrol(served, new_secret())
