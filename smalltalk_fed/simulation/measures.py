"""What the report counts: traffic by the minute, work by what became of it, leases by age.

Rules: counting changes nothing. Bytes are those of the serialised messages plus gRPC's five
in front of each (as in the ledger), and of blobs; HTTP/2, TLS and TCP come on top. Work is in
seconds of the reference node, time in machine-seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import Message

from smalltalk_fed.core import messages as msg
from smalltalk_fed.simulation.world import START_S
from smalltalk_fed.telemetry.ledger import FRAME_BYTES
from smalltalk_fed.wire import convert

_BUCKET_S = 60.0
_OTHER_BYTES = 120  # enrolments and the operator's requests, about


@dataclass
class Measures:
    """Counters of one world."""

    welcome_bytes: int  # a join's answer carries the manifest
    messages: int = 0
    message_bytes: int = 0
    blob_up_bytes: int = 0
    blob_down_bytes: int = 0
    work_done: float = 0.0  # reference seconds that were computed
    work_useful: float = 0.0  # of those, what accepted results are made of
    audit_work: float = 0.0  # of those, looking at others' results
    busy_s: float = 0.0  # machine-seconds computing or transferring
    present_s: float = 0.0  # machine-seconds switched on
    lease_ages_s: list[float] = field(default_factory=list)  # since the holder was last heard
    leases_seen: int = 0
    leases_stale: int = 0  # whose holder was not at the unit any more
    restarts: int = 0
    node_starts: int = 0
    _messages: dict[int, int] = field(default_factory=dict)
    _bytes: dict[int, float] = field(default_factory=dict)
    _sizes: dict[tuple[object, ...], int] = field(default_factory=dict)

    def message(self, now: float, message: msg.Request | msg.Answer | None) -> None:
        """One message, either way; None is a refusal."""
        size = _OTHER_BYTES if message is None else self._size(message)
        self.messages += 1
        self.message_bytes += size
        bucket = int((now - START_S) / _BUCKET_S)
        self._messages[bucket] = self._messages.get(bucket, 0) + 1
        self._bytes[bucket] = self._bytes.get(bucket, 0.0) + size

    def transfer(self, begun: float, now: float, size: int, *, up: bool) -> None:
        """A blob that travelled evenly between two times."""
        if up:
            self.blob_up_bytes += size
        else:
            self.blob_down_bytes += size
        first, last = int((begun - START_S) / _BUCKET_S), int((now - START_S) / _BUCKET_S)
        part = size / (last - first + 1)
        for bucket in range(first, last + 1):
            self._bytes[bucket] = self._bytes.get(bucket, 0.0) + part

    def peaks(self) -> tuple[float, float]:
        """Messages and bytes a second of the busiest minute."""
        return (
            max(self._messages.values(), default=0) / _BUCKET_S,
            max(self._bytes.values(), default=0.0) / _BUCKET_S,
        )

    def _size(self, message: msg.Request | msg.Answer) -> int:
        """Serialised size; messages of the same shape are measured once."""
        shape = _shape(message)
        size = self._sizes.get(shape)
        if size is None:
            size = self._sizes[shape] = self._measure(message)
        return size

    def _measure(self, message: msg.Request | msg.Answer) -> int:
        encoded: Message
        match message:
            case msg.Exchange():
                encoded = convert.exchange_to_proto(message)
            case msg.Order():
                encoded = convert.order_to_proto(message)
            case msg.Join():
                encoded = convert.join_to_proto(message)
            case msg.Leave():
                encoded = convert.leave_to_proto(message)
            case msg.Left():
                encoded = convert.left_to_proto(message)
            case msg.Joined():
                return self.welcome_bytes
            case _:
                return _OTHER_BYTES
        return encoded.ByteSize() + FRAME_BYTES


def _shape(message: msg.Request | msg.Answer) -> tuple[object, ...]:
    match message:
        case msg.Exchange():
            finished = message.finished.unit_id.split("/")[0] if message.finished else ""
            return (
                "exchange",
                message.working is not None,
                finished,
                message.failed is not None,
                message.collected is not None,
            )
        case msg.Order():
            unit = (message.unit.key.kind.value, len(message.unit.inputs)) if message.unit else ()
            return ("order", unit, bool(message.accepted), bool(message.cancel), message.stop)
        case _:
            return (type(message).__name__,)
