"""Blobs over the connection: resumed where they broke off, checked before they count.

Rules: an upload asks how much is there and goes on at that byte; a download goes on behind
what an earlier one wrote; size and digest are checked before the file gets its name. Parts
of 256 KiB, each counted in the ledger. Retrying is the caller's part. `should_stop` is asked
between parts; a transfer that it ends can be continued like any that broke off.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import grpc

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import kind_of
from smalltalk_fed.wire.convert import Upload, upload_to_proto
from smalltalk_fed.wire.values import digest_to_proto
from smalltalk_node.connection import Connection, NoAnswer

PART_BYTES = 256 * 1024
STALL_S = 120.0  # a call that carries a part takes no longer


def ref_of(name: str, source: bytes | Path) -> BlobRef:
    """Name, digest and size of bytes or a file."""
    if isinstance(source, bytes):
        return BlobRef(name, hashlib.sha256(source).hexdigest(), len(source))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return BlobRef(name, digest, file.tell())


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
                ledger.message(node_id, kind, "up", part.ByteSize())
                yield part

    timeout_s = STALL_S + 2 * (ref.size - offset) / PART_BYTES  # 128 KiB a second at the least
    try:
        reply = connection.stub.PutBlob(parts(), timeout=timeout_s)
    except grpc.RpcError as error:
        raise connection.explained(error) from None
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
    try:
        with part_path.open("ab") as file:
            offset = file.tell()
            if offset < ref.size or not ref.size:
                request = pb.GetBlobRequest(
                    digest=digest_to_proto(ref.digest), offset=offset, name=ref.name
                )
                ledger.message(node_id, kind, "up", request.ByteSize())
                timeout_s = STALL_S + 2 * (ref.size - offset) / PART_BYTES
                for part in connection.stub.GetBlob(request, timeout=timeout_s):
                    if should_stop():
                        break
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
        raise connection.explained(error) from None
    except OSError as error:
        raise WorldError(f"{to} can't be written ({error.strerror or error}).") from error
    return to


def _wrong(part_path: Path, what: str) -> Malformed:
    part_path.unlink(missing_ok=True)
    return Malformed(f"the coordinator sent a wrong blob: {what}")


def _reader(source: bytes | Path) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
