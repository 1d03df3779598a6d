"""What goes out of this process: recorded before it leaves, and uploads no faster than allowed.

Rules: every stub is made on a channel from here, so that nothing goes past; both happen where
messages are turned into bytes, just before TLS. Only uploads are slowed: heartbeats are a few
hundred bytes, and late ones would cost the lease. Nothing is changed on the way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from smalltalk_fed.errors import WorldError
from smalltalk_node.recording import EgressRecorder

Serializer = Callable[[Any], bytes]


class Outgoing:
    """One for all channels of a process."""

    def __init__(
        self,
        recorder: EgressRecorder | None = None,
        up_mbit: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`up_mbit`: megabits a second for all uploads together; 0: as fast as it goes."""
        self._recorder, self._bytes_s = recorder, up_mbit * 1e6 / 8
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._free_at = float("-inf")

    def through(self, channel: grpc.Channel) -> Any:
        """What a stub is made on."""
        if self._recorder is None and not self._bytes_s:
            return channel
        return _Watched(channel, self)

    @property
    def problem(self) -> WorldError | None:
        """Why the last message did not leave, if it did not."""
        return self._recorder.problem if self._recorder else None

    def noting(self, call: str, serialize: Serializer) -> Serializer:
        """`serialize`, which records what it gives back."""
        return self._watching(call, serialize, 0)

    def noting_upload(self, call: str, serialize: Serializer) -> Serializer:
        """As `noting`, for one upload: its parts get a number, and wait until the line is free."""
        number = self._recorder.new_stream() if self._recorder else 1
        return self._watching(call, serialize, number)

    def _watching(self, call: str, serialize: Serializer, stream: int) -> Serializer:
        def to_bytes(message: Any) -> bytes:
            data = serialize(message)
            if stream and self._bytes_s:
                self._wait_for_line(len(data))
            if self._recorder is not None:
                self._recorder.record(call, data, stream)
            return data

        return to_bytes

    def _wait_for_line(self, nbytes: int) -> None:
        with self._lock:
            now = self._clock()
            starts = max(now, self._free_at)
            self._free_at = starts + nbytes / self._bytes_s
        if starts > now:
            self._sleep(starts - now)


class _Watched:
    """A channel with the kinds of calls that the stubs make."""

    def __init__(self, channel: grpc.Channel, outgoing: Outgoing) -> None:
        self._channel, self._outgoing = channel, outgoing

    def unary_unary(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        noting = self._outgoing.noting(call, request_serializer)
        return self._channel.unary_unary(call, noting, **more)

    def unary_stream(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        noting = self._outgoing.noting(call, request_serializer)
        return self._channel.unary_stream(call, noting, **more)

    def stream_stream(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        noting = self._outgoing.noting(call, request_serializer)  # answers: they are small
        return self._channel.stream_stream(call, noting, **more)

    def stream_unary(self, call: str, request_serializer: Serializer, **more: Any) -> Any:
        def make() -> Any:
            noting = self._outgoing.noting_upload(call, request_serializer)
            return self._channel.stream_unary(call, noting, **more)

        return _Uploads(make)


class _Uploads:
    """A call of many messages, made anew for each upload."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def future(self, parts: Iterator[Any], **more: Any) -> Any:
        return self._make().future(parts, **more)
