"""`run --record-egress FILE`: every message that leaves is written down first, byte for byte.

Rules: recorded where messages are turned into bytes, just before TLS, on every channel that
the process opens; a message that can't be written down does not leave. The file grows by what
leaves and 100 bytes a message, is its owner's alone (0600), and is added to by later starts.
Its format, and holding it against what is declared, is `wire.egress_record`'s part.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from smalltalk_fed.errors import WorldError
from smalltalk_fed.wire.egress_record import entry

Serializer = Callable[[Any], bytes]


class EgressRecorder:
    """Writes one file. Any thread may record."""

    def __init__(self, path: Path) -> None:
        """Raises WorldError when the file can't be opened."""
        self.path = path
        self.problem: WorldError | None = None  # why the last message did not leave
        self._lock = threading.Lock()
        self._streams = itertools.count(1)
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error

    def record(self, call: str, data: bytes, stream: int = 0) -> None:
        """Write one message. Raises WorldError: it was not written, and must not leave."""
        whole = entry(time.time(), call, data, stream)
        with self._lock:
            size = os.fstat(self._handle).st_size
            try:
                written = os.write(self._handle, whole)
                while written < len(whole):
                    written += os.write(self._handle, whole[written:])
                self.problem = None
            except OSError as error:
                os.ftruncate(self._handle, size)
                self.problem = self._unwritable(error)
                raise self.problem from error

    def new_stream(self) -> int:
        """A number for the messages of one upload."""
        return next(self._streams)

    def _unwritable(self, error: OSError) -> WorldError:
        return WorldError(
            f"what leaves can't be recorded in {self.path} ({error.strerror or error}), so nothing "
            "leaves; make room there, or start without --record-egress."
        )


def recorded(channel: grpc.Channel, recorder: EgressRecorder | None) -> Any:
    """What a stub is made on: `channel`, or one whose messages are recorded."""
    return channel if recorder is None else _RecordedChannel(channel, recorder)


class _RecordedChannel:
    """The three kinds of calls that the stubs make."""

    def __init__(self, channel: grpc.Channel, recorder: EgressRecorder) -> None:
        self._channel, self._recorder = channel, recorder

    def unary_unary(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        return self._channel.unary_unary(call, self._noting(call, request_serializer), **more)

    def unary_stream(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        return self._channel.unary_stream(call, self._noting(call, request_serializer), **more)

    def stream_unary(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        return _Uploads(
            lambda: self._channel.stream_unary(
                call,
                self._noting(call, request_serializer, self._recorder.new_stream()),
                **more,
            )
        )

    def _noting(self, call: str, serialize: Serializer, stream: int = 0) -> Serializer:
        def to_bytes(message: Any) -> bytes:
            data = serialize(message)
            self._recorder.record(call, data, stream)
            return data

        return to_bytes


class _Uploads:
    """A call of many messages, made anew for each upload, so that each has its number."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def future(self, parts: Iterator[Any], **more: Any) -> Any:
        return self._make().future(parts, **more)
