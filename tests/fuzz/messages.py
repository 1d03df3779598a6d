"""Decoders of what the two programs say to each other: every message of the protocol.

Each goes as far as it can without a socket: conversion, the core's check of a report against
a run's state, certificates out of requests. `gRPC` refuses what is no message at all
(`DecodeError`) before our code is called.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fuzz.decoders import Decoder
from google.protobuf.message import DecodeError, Message
from support.core_world import blob, make_manifest
from support.silo_world import private_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.catalogue import outputs_of, size_limit
from smalltalk_fed.core.leases import Leases
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.core.results import check_exchange
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import PeerError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import kind_of
from smalltalk_fed.wire import convert, convert_admin, convert_transfer
from smalltalk_fed.wire import convert_measuring as measuring
from smalltalk_fed.wire import convert_serving as serving
from smalltalk_fed.wire.certificates import (
    CertificateAuthority,
    certificate_facts,
    make_key,
    make_request,
    public_key_sha256,
    to_der,
    to_pem,
    verify_issued_by,
)
from smalltalk_fed.wire.signing import verify_manifest
from smalltalk_fed.wire.values import digest_from_proto

NOW = 1_800_000_000.0
# Messages that nothing is read out of, or that only our own programs make for our own operator.
NOT_READ = {
    "StatusRequest": "it has no fields",
    "ResumeRequest": "it has no fields",
    "StatusReply": "JSON that the coordinator made, shown to whoever has its folder",
}

TEXT = measuring.Text(1, (5, 6, 7, 8, 9, 10), 3, 2, 8)
PROMPT = serving.Prompt(1, (5, 6, 299), 20, 0.8, 0.95, 3, 0, 7)
Read = Callable[[Any], object]


@functools.cache
def authority() -> CertificateAuthority:
    """A run's authority; its certificates are seeds."""
    return CertificateAuthority.create("fuzz", NOW)


@functools.cache
def request() -> bytes:
    """A certificate request of a newcomer."""
    return make_request(make_key(), "box")


@functools.cache
def states() -> tuple[HardState, ...]:
    """Runs in the middle: routing, training with weights that are collected on the way, silos."""
    routing = HardState(make_manifest())
    routing.apply(ev.PhaseChanged(1.0, Trigger.ENOUGH_NODES, Phase.ROUTING, "enough"))
    routing.apply(ev.RoundAssigned(2.0, 1, (blob("share", "0"), blob("share", "1"))))
    training = HardState(make_manifest(expert={"collect": "every 2 steps"}))
    training.apply(ev.PhaseChanged(1.0, Trigger.SEGMENTS_MADE, Phase.TRAINING, "sharded"))
    training.apply(ev.SegmentsMade(2.0, (blob("segment", "0"), blob("segment", "1"))))
    return routing, training, _private_state()


def _private_state() -> HardState:
    """A private run at its first counts; every seat is of the node that the messages are from."""
    state = HardState(private_manifest())
    for seat in range(3):
        state.apply(silo_ev.SeatTaken(1.0, seat, "n-1", 20, 6, "c" * 64, "never"))
    state.apply(ev.PhaseChanged(1.0, Trigger.ENOUGH_NODES, Phase.ROUTING, "enough"))
    for key in list(state.phase_units()):
        outputs = tuple(blob(name, name) for name in outputs_of(state.manifest, key))
        state.apply(ev.UnitAccepted(2.0, key.unit_id, "n-1", 7, outputs, {}, "ab", 1.0))
    return state


def decoders() -> list[Decoder]:
    """One a message, by the message's name."""
    return [
        Decoder(
            f"message {kind.DESCRIPTOR.name}",
            functools.partial(_decode, kind, read),
            (PeerError, DecodeError),
            tuple(seed.SerializeToString() for seed in seeds),
            message=kind,
        )
        for kind, read, seeds in (*_requests(), *_replies())
    ]


def _decode(kind: type[Message], read: Read, data: bytes) -> object:
    return read(kind.FromString(data))


def _requests() -> list[tuple[type[Message], Read, list[Message]]]:
    ref, result = blob("parameters", "p"), _result()
    certificate = to_der(authority().issue_node(request(), "n-1", NOW))
    capabilities = msg.Capabilities("cpu", 2, 1 << 34, 5.0, "c" * 64, 99, "torch")
    of_a_silo = replace(capabilities, train_sequences=900, heldout_sequences=100)
    exchanges = [
        msg.Exchange("n-1", 7, working=msg.Working("router_round/0/1", 0.5, {"loss": 3.0})),
        msg.Exchange("n-1", 7, finished=result),
        msg.Exchange("n-1", 7, failed=msg.Failure("train_expert/1", "no memory")),
        msg.Exchange("n-1", 7, collected=_collected()),
        msg.Exchange("n-1", 7, finished=Result("count/1/1/0", (blob("counts", "c"),))),
    ]
    admin = convert_admin
    return [
        (
            pb.EnrolRequest,
            convert.enrol_from_proto,
            [pb.EnrolRequest(secret=bytes(16), certificate_request=request(), name="box")],
        ),
        (
            pb.RenewRequest,
            _renew,
            [pb.RenewRequest(certificate=certificate, certificate_request=request())],
        ),
        (pb.ExplainRequest, _explain, [pb.ExplainRequest(certificate=certificate)]),
        (
            pb.JoinRequest,
            functools.partial(convert.join_from_proto, "n-1"),
            [
                convert.join_to_proto(msg.Join("n-1", 7, 1, b"k" * 32, capabilities)),
                convert.join_to_proto(msg.Join("n-1", 7, 1, b"k" * 32, of_a_silo, 3, "operator")),
            ],
        ),
        (pb.ExchangeRequest, _exchange, [convert.exchange_to_proto(each) for each in exchanges]),
        (
            pb.BlobStateRequest,
            lambda asked: digest_from_proto(asked.digest),
            [pb.BlobStateRequest(digest=bytes(32), name="scores")],
        ),
        (
            pb.BlobPart,
            _upload,
            [
                convert_transfer.upload_to_proto(
                    convert_transfer.Upload(ref, "router_round/0/1", 0), b"p"
                )
            ],
        ),
        (
            pb.GetBlobRequest,
            lambda asked: (digest_from_proto(asked.digest), kind_of(asked.name[:40])),
            [pb.GetBlobRequest(digest=bytes(32), offset=3, name="share")],
        ),
        (
            pb.LeaveRequest,
            functools.partial(convert.leave_from_proto, "n-1"),
            [pb.LeaveRequest(incarnation=7, reason="Ctrl-C")],
        ),
        (
            pb.InviteRequest,
            admin.invite_from_proto,
            [admin.invite_to_proto(msg.MakeInvite("a" * 64, NOW, 3, "box"))],
        ),
        (
            pb.CancelInviteRequest,
            admin.cancel_invite_from_proto,
            [pb.CancelInviteRequest(prefix="a1")],
        ),
        (
            pb.RevokeRequest,
            admin.revoke_from_proto,
            [pb.RevokeRequest(node_id="n-1", reason="lost")],
        ),
        (
            pb.WithdrawRequest,
            functools.partial(serving.withdraw_from_proto, "n-1"),
            [serving.withdraw_to_proto(msg.Withdraw((0, 2), "n-1", True, "ours again"))],
        ),
        (
            pb.TakeOutRequest,
            serving.take_out_from_proto,
            [serving.take_out_to_proto(msg.Withdraw((), "n-1", False, "asked to"))],
        ),
        (
            pb.ServeUp,
            serving.serve_up_from_proto,
            [
                serving.offer_to_proto(serving.Offer((0, 3), 2)),
                serving.answer_up(serving.Completion(7, (1, 2, 300))),
                serving.answer_up(serving.Completion(8, problem="no memory")),
                serving.answer_up(measuring.Losses(9, 3.5, 4.5)),
            ],
        ),
        (pb.Prompt, serving.prompt_from_proto, [serving.prompt_to_proto(PROMPT)]),
        (pb.Text, measuring.text_from_proto, [measuring.text_to_proto(TEXT)]),
        (pb.ReadmitRequest, admin.readmit_from_proto, [pb.ReadmitRequest(node_id="n-1")]),
        (pb.PauseRequest, admin.pause_from_proto, [pb.PauseRequest(reason="holiday")]),
    ]


def _replies() -> list[tuple[type[Message], Read, list[Message]]]:
    manifest = make_manifest().to_bytes()
    joined, runs = msg.Joined("n-1", "welcome"), ("box.example:4100", "[::1]:4100")
    welcome = convert.Welcome(joined, manifest, b"s" * 64, b"k" * 32, runs, ("h:1", "h:2"))
    inputs = (blob("share", "1"), BlobRef("parameters", "b" * 64, 9))
    unit = Unit(UnitKey(UnitKind.ROUTER_ROUND, 0, 2), inputs, 0, (1.0, 2.0))
    orders = [
        msg.Order("work", accepted="router_round/0/1", unit=unit),
        msg.Order("the run is finished", stop=True),
    ]
    return [
        (
            pb.EnrolReply,
            lambda reply: to_pem(reply.certificate),
            [pb.EnrolReply(node_id="n-1", certificate=authority().certificate_pem)],
        ),
        (
            pb.ExplainReply,
            lambda reply: (reply.reason[:500], reply.welcome, reply.now),
            [pb.ExplainReply(reason="revoked", now=NOW)],
        ),
        (pb.JoinReply, _welcome, [convert.welcome_to_proto(welcome)]),
        (
            pb.ExchangeReply,
            convert.order_from_proto,
            [convert.order_to_proto(order) for order in orders],
        ),
        (
            pb.BlobStateReply,
            lambda reply: min(int(reply.received), 10),
            [pb.BlobStateReply(received=5, complete=False)],
        ),
        (
            pb.WithdrawReply,
            serving.withdrawn_from_proto,
            [pb.WithdrawReply(reason="expert 1 left the mixture")],
        ),
        (
            pb.ServeDown,
            serving.serve_down_from_proto,
            [
                serving.taken_to_proto("prompts follow"),
                serving.asked_down(PROMPT),
                serving.asked_down(TEXT),
            ],
        ),
        (
            pb.MeasureReply,
            measuring.measured_from_proto,
            [measuring.measured_to_proto(measuring.Measured("n-1", "box", 3.5, 4.5))],
        ),
        (
            pb.GenerateReply,
            serving.answered_from_proto,
            [serving.answered_to_proto(serving.Answered("n-1", "box", (5, 6)))],
        ),
        (pb.LeaveReply, convert.left_from_proto, [pb.LeaveReply(released=["shard/3"])]),
        (pb.AdminReply, convert_admin.done_from_proto, [pb.AdminReply(reason="done")]),
    ]


def _result() -> Result:
    outputs = (blob("parameters", "p"), blob("scores", "s"))
    return Result("router_round/0/1", outputs, {"loss_mean": 3.5, "tokens_per_s": 9.0}, b"s" * 64)


def _collected() -> Result:
    weights = (blob("weights", "w"),)
    return Result("train_expert/0", weights, {"step": 2.0, "from_step": 0.0}, b"s" * 64)


def _exchange(message: pb.ExchangeRequest) -> object:
    exchange, refused = convert.exchange_from_proto("n-1", message), []
    leases = Leases(20.0, 0.0, 0.0)
    for state in states():  # what is no news in one phase is in another
        try:
            check_exchange(state, leases, exchange)
        except PeerError as error:
            refused.append(error)
    if len(refused) == len(states()):
        raise refused[-1]
    return exchange


def _upload(part: pb.BlobPart) -> object:
    announced = convert_transfer.upload_from_proto(part)
    manifest: RunManifest = states()[0].manifest
    name, key = announced.ref.name, UnitKey.parse(announced.unit_id)
    return name in outputs_of(manifest, key), size_limit(manifest, name), kind_of(name)


def _renew(message: pb.RenewRequest) -> object:
    facts = certificate_facts(message.certificate)
    public_key_sha256(message.certificate_request)
    verify_issued_by(authority().certificate_der, message.certificate)
    return facts.problem(NOW)


def _explain(message: pb.ExplainRequest) -> object:
    verify_issued_by(authority().certificate_der, message.certificate)
    return certificate_facts(message.certificate).problem(NOW)


def _welcome(reply: pb.JoinReply) -> object:
    welcome = convert.welcome_from_proto(reply)
    with contextlib.suppress(PeerError):
        verify_manifest(welcome.coordinator_key, welcome.manifest, welcome.manifest_signature)
    return RunManifest.from_bytes(welcome.manifest)
