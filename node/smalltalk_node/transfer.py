"""Blobs over the connection: resumed where they broke off, checked before they count.

Rules: an upload asks how much is there and goes on at that byte; a download goes on behind
what an earlier one wrote; size and digest are checked before the file gets its name. Parts
of 256 KiB, each counted in the ledger. Retrying is the caller's part. However slow the line, a
transfer that moves goes on; one that does not for `STALL_S` ends (a dead line ends sooner, by
keepalive), as does one that `should_stop`; it can be continued like any that broke off.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import grpc

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import kind_of
from smalltalk_fed.wire.convert_transfer import Upload, upload_to_proto
from smalltalk_fed.wire.values import digest_to_proto
from smalltalk_fed.worksite.cache import ref_of
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import NoAnswer

PART_BYTES = 256 * 1024
STALL_S = 120.0  # a part takes no longer: 2 KiB a second at the least
LOOK_S = 0.5


def put_blob(
    connection: Connection,
    ref: BlobRef,
    unit_id: str,
    source: bytes | Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Upload `source` as `ref`, an output of `unit_id`; nothing travels that is there already.

    Raises:
        PeerError: the coordinator does not want it.
        NoAnswer: no answer, or the upload broke off; say it again.
    """
    asked = pb.BlobStateRequest(digest=digest_to_proto(ref.digest), name=ref.name)
    state = connection.call(connection.stub.BlobState, asked, "blob_state")
    if state.complete:
        return
    kind = kind_of(ref.name, unit_id)
    ledger, node_id = connection.ledger, connection.node_id
    offset = min(int(state.received), ref.size)

    def parts() -> Iterator[pb.BlobPart]:
        with _reader(source) as file:
            file.seek(offset)
            first = True
            while not should_stop() and ((data := file.read(PART_BYTES)) or first):
                part = pb.BlobPart(data=data)
                if first:
                    part = upload_to_proto(Upload(ref, unit_id, offset), data)
                first = False
                pace.moved()
                ledger.message(node_id, kind, "up", part.ByteSize())
                yield part

    pace = _Pace()
    stub, line = connection.stub, connection.line
    call = stub.PutBlob.future(parts())  # asks for a part when the last one has left
    try:
        with _watched(call, pace, should_stop):
            reply = call.result()
    except (grpc.RpcError, grpc.FutureCancelledError) as error:
        raise connection.explained(error, line) from None
    ledger.message(node_id, kind, "down", reply.ByteSize())
    if not reply.complete:
        raise NoAnswer(f"the upload of '{ref.name}' broke off after {reply.received} bytes.")


def get_blob(
    connection: Connection,
    ref: BlobRef,
    to: Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Download `ref` to the path `to`, which is there whole and right afterwards, or not at all.

    Raises:
        PeerError: the coordinator has it no more, or sent other bytes.
        NoAnswer: no answer, or the download broke off; say it again.
        WorldError: the disk is full.
    """
    part_path = to.with_name(f"{to.name}.part")
    kind = kind_of(ref.name)
    ledger, node_id = connection.ledger, connection.node_id
    stub, line = connection.stub, connection.line
    try:
        with part_path.open("ab") as file:
            offset = file.tell()
            if offset < ref.size or not ref.size:
                request = pb.GetBlobRequest(
                    digest=digest_to_proto(ref.digest), offset=offset, name=ref.name
                )
                ledger.message(node_id, kind, "up", request.ByteSize())
                call, pace = stub.GetBlob(request), _Pace()
                with _watched(call, pace, should_stop):
                    for part in call:
                        if should_stop():
                            break
                        pace.moved()
                        ledger.message(node_id, kind, "down", part.ByteSize())
                        if file.tell() + len(part.data) > ref.size:
                            raise _wrong(part_path, f"'{ref.name}' has more than {ref.size} bytes")
                        file.write(part.data)
            received = file.tell()
        if received < ref.size:
            raise NoAnswer(f"the download of '{ref.name}' broke off after {received} bytes.")
        if ref_of(ref.name, part_path) != ref:
            raise _wrong(part_path, f"'{ref.name}' does not have the digest {ref.digest[:12]}")
        part_path.replace(to)
    except grpc.RpcError as error:
        raise connection.explained(error, line) from None
    except OSError as error:
        raise WorldError(f"{to} can't be written ({error.strerror or error}).") from error
    return to


class _Pace:
    """When a transfer moved last."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def moved(self) -> None:
        self._at = time.monotonic()

    @property
    def stalled(self) -> bool:
        return time.monotonic() - self._at > STALL_S


@contextlib.contextmanager
def _watched(call: grpc.Future, pace: _Pace, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Cancel `call` once nothing moves or nobody wants it; no deadline fits every line."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            if pace.stalled or should_stop():
                call.cancel()
                return

    threading.Thread(target=watch, name="watch-transfer", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _wrong(part_path: Path, what: str) -> Malformed:
    part_path.unlink(missing_ok=True)
    return Malformed(f"the coordinator sent a wrong blob: {what}")


def _reader(source: bytes | Path) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
