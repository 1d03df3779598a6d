"""`revoke`: the long poll ends, the lease goes elsewhere, transfers stop. Over real sockets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.deployment import wait_for
from support.served_run import Guest, ServedRun

from smalltalk_fed.core import messages as msg
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire.signing import SigningKey, verify_unit
from smalltalk_fed.wire.values import unit_from_proto

SOON_S = 30.0


@contextlib.contextmanager
def joined(run: ServedRun, guest: Guest, incarnation: int = 1) -> Iterator[Any]:
    """The stub of a node that has joined."""
    with run.channel(guest) as channel:
        stub = pb_grpc.RunStub(channel)
        join = pb.JoinRequest(incarnation=incarnation, protocol_version=1, signing_key=bytes(32))
        join.capabilities.corpus_digest = run.folder.manifest.corpus_digest
        stub.Join(join, timeout=SOON_S)
        yield stub


def ask(incarnation: int = 1) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(incarnation=incarnation, wants_work=True)


def test_its_unit_goes_to_a_node_that_waits_and_its_long_poll_ends(served: ServedRun) -> None:
    guests = [served.enrol(name) for name in ("a", "b", "c", "d")]
    with contextlib.ExitStack() as stack:
        stubs = [stack.enter_context(joined(served, guest)) for guest in guests]
        # Two experts: two nodes work, two wait.
        units = [stub.Exchange(ask(), timeout=SOON_S).unit.unit_id for stub in stubs[:2]]
        assert units == ["router_round/0/1", "router_round/1/1"]
        waits = [stub.Exchange.future(ask(), timeout=SOON_S) for stub in stubs[2:]]
        wait_for(lambda: len(served.host.coordinator.leases.waiting) == 2, "both to be held")
        served.ask(msg.Revoke(guests[3].node_id, "not wanted"))
        ended = waits[1].result(SOON_S)
        assert (ended.stop, ended.failed) == (True, True)
        assert ended.reason == f"node {guests[3].node_id} was shut out: not wanted"
        served.ask(msg.Revoke(guests[0].node_id, "it lies"))
        assert waits[0].result(SOON_S).unit.unit_id == units[0]


def test_an_upload_and_a_download_under_way_stop(served: ServedRun) -> None:
    guest = served.enrol()
    with joined(served, guest) as stub:
        unit = stub.Exchange(ask(), timeout=SOON_S).unit
        revoked = threading.Event()

        def parts() -> Iterator[pb.BlobPart]:
            yield pb.BlobPart(
                digest=bytes(32), size=500, name="parameters", unit_id=unit.unit_id, data=b"a"
            )
            assert revoked.wait(SOON_S)
            yield pb.BlobPart(data=b"b")

        upload = stub.PutBlob.future(parts(), timeout=SOON_S)
        wait_for(lambda: served.host.blobs.received("00" * 32) == 1, "the first part")
        served.ask(msg.Revoke(guest.node_id, "it lies"))
        revoked.set()
        with pytest.raises(grpc.RpcError, match="it lies"):
            upload.result(SOON_S)


def test_work_is_signed_for_the_process_that_gets_it(served: ServedRun) -> None:
    guest = served.enrol()
    with joined(served, guest, incarnation=7) as stub:
        reply = stub.Exchange(ask(7), timeout=SOON_S)
    key: SigningKey = served.folder.signing_key()
    who = (served.folder.manifest.run_id, guest.node_id, 7)
    verify_unit(key.public_bytes, *who, unit_from_proto(reply.unit), reply.unit_signature)


def test_two_processes_with_one_key_are_seen_in_the_status_and_the_log(served: ServedRun) -> None:
    guest = served.enrol()
    with joined(served, guest, incarnation=1) as older, joined(served, guest, incarnation=2):
        (node,) = served.status()["nodes"]
        assert node["two_places"] is None
        for _ in range(3):
            with pytest.raises(grpc.RpcError, match="key was copied"):
                older.Exchange(ask(1), timeout=SOON_S)
        (node,) = served.status()["nodes"]
        assert node["two_places"] == served.clock.now()
        wait_for(lambda: any(d.warning for d in served.decisions), "the report")
        (warning,) = [d for d in served.decisions if d.warning]
        assert warning.what == f"node {guest.node_id} is in two places"
