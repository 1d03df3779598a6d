"""What a node recorded of all that left it, held against what is declared in `egress`.

A record is a line of JSON for each message (`at`, `call`, `bytes`, and `stream`, which is the
same for the parts of one upload), the message's bytes as they went to TLS, and a line's end:
plain tools such as grep find text in it. Rules: a message is as declared if it is one of the
requests that a node may send, holds no byte that its declared fields don't account for, and
passes the bounds that the receiving end enforces; an upload must be one of the declared blobs,
within its size in this run, with the digest that it names. Nothing is decoded but messages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.errors import DataError, SmalltalkError, shown
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert, convert_serving, convert_transfer
from smalltalk_fed.wire.egress import BLOBS, CALLS, blob_kind, figure_is_declared, may_leave

UPLOAD = "PutBlob"
LONGEST_BYTES = 4 << 20  # twice what gRPC lets through
_UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError),
    *(ArithmeticError, RecursionError),  # a size that is infinite; brackets without end
)
_MESSAGES: dict[str, type[Message]] = {
    call: getattr(pb, descriptor.name) for call, _, descriptor in CALLS
}
_NODE = "n-0"  # who sent a message is the certificate's word; any id will do here
_READERS: dict[str, Callable[[Any], object]] = {
    "Enrol": convert.enrol_from_proto,
    "Join": lambda message: convert.join_from_proto(_NODE, message),
    "Exchange": lambda message: convert.exchange_from_proto(_NODE, message),
    "Leave": lambda message: convert.leave_from_proto(_NODE, message),
    "Withdraw": lambda message: convert_serving.withdraw_from_proto(_NODE, message),
    "Serve": convert_serving.serve_up_from_proto,
    # Only an upload's first part says what it is.
    "PutBlob": lambda part: convert_transfer.upload_from_proto(part) if part.digest else None,
}


@dataclass(frozen=True)
class Sent:
    """One recorded message; `call` is a name such as Exchange, `at` seconds since the epoch."""

    at: float
    call: str
    data: bytes
    stream: int = 0


@dataclass
class Upload:
    """What one PutBlob call sent."""

    name: str
    unit_id: str
    offset: int
    size: int
    digest: str
    data: bytearray = field(default_factory=bytearray)


def entry(at: float, call: str, data: bytes, stream: int = 0) -> bytes:
    """One message as it stands in a record; `call` is gRPC's path or its last part."""
    head = {"at": round(at, 3), "call": call.rpartition("/")[2], "bytes": len(data)}
    if stream:
        head["stream"] = stream
    return json.dumps(head).encode() + b"\n" + data + b"\n"


def read_record(path: Path) -> Iterator[Sent]:
    """The messages of a record, in the order in which they left.

    Raises:
        DataError: it is no record, or was damaged.
    """
    try:
        with path.open("rb") as file:
            while line := file.readline(1000):
                head = json.loads(line)
                size = int(head["bytes"])
                if not 0 <= size <= LONGEST_BYTES:
                    raise ValueError(f"no message has {size} bytes")
                data = file.read(size)
                if len(data) != size or file.read(1) != b"\n":
                    raise ValueError("it breaks off")
                stream = int(head.get("stream", 0))
                yield Sent(float(head["at"]), str(head["call"]), data, stream)
    except _UNREADABLE as error:
        why = shown(str(error), 200)
        raise DataError(f"{path} is no record of what left a node: {why}.") from None


def undeclared(sent: Sent) -> str:
    """What is in a message that is not declared; the empty string if nothing is."""
    kind = _MESSAGES.get(sent.call)
    if kind is None:
        return f"the call {shown(sent.call)} is not one that a node makes"
    message = kind()
    try:
        message.ParseFromString(sent.data)
    except DecodeError:
        return f"what was sent in {sent.call} is no {kind.DESCRIPTOR.name}"
    message.DiscardUnknownFields()
    if message.ByteSize() != len(sent.data):
        return f"a {kind.DESCRIPTOR.name} has bytes that belong to no declared field"
    try:
        _READERS.get(sent.call, lambda message: None)(message)
    except SmalltalkError as error:
        return f"a {kind.DESCRIPTOR.name} is out of bounds: {error}"
    return _undeclared_figure(message)


def _undeclared_figure(message: Message) -> str:
    if not isinstance(message, pb.ExchangeRequest):
        return ""
    for told in (message.working, message.finished, message.collected):
        for figure in told.figures:
            if not figure_is_declared(figure.name):
                return f"the figure '{figure.name}' is not declared"
    return ""


def uploads(messages: Iterable[Sent]) -> list[Upload]:
    """The uploads among messages that are as declared, put together from their parts.

    `stream` numbers start anew with each process, so a first part begins another upload.
    """
    found: list[Upload] = []
    open_: dict[int, Upload] = {}
    for sent in messages:
        if sent.call != UPLOAD:
            continue
        part = pb.BlobPart.FromString(sent.data)
        if part.digest or sent.stream not in open_:
            open_[sent.stream] = Upload(
                part.name, part.unit_id, part.offset, part.size, part.digest.hex()
            )
            found.append(open_[sent.stream])
        open_[sent.stream].data += part.data
    return found


def undeclared_upload(upload: Upload, manifest: RunManifest | None = None) -> str:
    """What is wrong with an upload; the empty string if it is one that is declared."""
    if blob_kind(upload.name) not in BLOBS:
        return f"a blob called '{upload.name}' is not declared"
    end = upload.offset + len(upload.data)
    if end > upload.size:
        return f"'{upload.name}' of {upload.unit_id} sent more than its {upload.size} bytes"
    if manifest is not None and upload.size > size_limit(manifest, upload.name):
        limit = size_limit(manifest, upload.name)
        return f"'{upload.name}' of {upload.unit_id} has {upload.size} bytes, over {limit}"
    if manifest is not None and not may_leave(manifest, blob_kind(upload.name)):
        return f"'{upload.name}' of {upload.unit_id} is not for this run, and never leaves in it"
    whole = upload.offset == 0 and end == upload.size
    if whole and hashlib.sha256(upload.data).hexdigest() != upload.digest:
        return f"'{upload.name}' of {upload.unit_id} is not what its digest says"
    return ""
