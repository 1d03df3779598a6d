"""What gRPC holds connections to on each of the two ports, before any call is looked at.

Rules: a connection must finish its handshake in time and says little in its headers; there are
so many at the most, and one more is closed at once (those that are there go on). Nothing that
comes is unpacked: a small message stays small. All numbers are `wire.limits`'. A port can't
tell who dials before the handshake: what else stands in front of it is docs/limits.md's part.
"""

from __future__ import annotations

import logging
import resource

from smalltalk_fed.errors import WorldError
from smalltalk_fed.wire import limits

log = logging.getLogger("smalltalk.coordinator")

Options = tuple[tuple[str, int], ...]

OTHER_FILES = 256  # journal, blobs, listening sockets, pipes
FILES_LEAST = 512

# Without bandwidth probing and with a small look-ahead, 64 uploads of 8.8 MB at once cost
# 142 MB instead of 527 MB. One port belongs to one server: no SO_REUSEPORT.
_BOTH: Options = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.server_handshake_timeout_ms", int(limits.HANDSHAKE_S * 1000)),
    ("grpc.max_metadata_size", limits.HEADERS_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", 2 * limits.HEADERS_BYTES_MAX),
    # 300 kB of zeros that were packed unpack to 300 MB.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A line that died without a word costs memory, and an upload its place, until it is closed.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A node that was told to wait for minutes dials again: a handshake costs a millisecond, a
    # connection that is kept costs 75 kB.
    ("grpc.max_connection_idle_ms", int(limits.IDLE_S * 1000)),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


def node_options(connections: int) -> Options:
    """Of the nodes' port: uploads may take days, so no connection is too old."""
    return (
        *_BOTH,
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", limits.STREAMS_MAX),
    )


def newcomer_options(connections: int) -> Options:
    """Of the enrolment port: whoever dials has said nothing of himself yet."""
    return (
        *_BOTH,
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", limits.NEWCOMER_STREAMS_MAX),
        ("grpc.max_connection_age_ms", int(limits.NEWCOMER_AGE_S * 1000)),
        ("grpc.max_connection_age_grace_ms", int(limits.NEWCOMER_GRACE_S * 1000)),
    )


def connection_caps(pairs: int = 1) -> tuple[int, int]:
    """Connections of a nodes' and of an enrolment port: as many as the open files allow.

    `pairs`: of such ports, which share the files. The soft limit of open files is raised as far
    as the hard one allows.

    Raises:
        WorldError: the limit of open files is too low to serve at all.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OTHER_FILES + pairs * (limits.CONNECTIONS_MAX + limits.NEWCOMERS_MAX)
    files = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if files < FILES_LEAST:
        raise WorldError(
            f"this process may open {files} files, a coordinator needs {FILES_LEAST}, and one for "
            "each connection; raise the limit (`ulimit -n`, or LimitNOFILE= of the service)"
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    share = (files - OTHER_FILES) // pairs
    newcomers = min(limits.NEWCOMERS_MAX, share // 4)
    nodes = min(limits.CONNECTIONS_MAX, share - newcomers)
    if nodes < limits.CONNECTIONS_MAX:
        log.warning(
            "%d open files are allowed, so at most %d nodes are connected at a time; raise the "
            "limit (`ulimit -n`, or LimitNOFILE= of the service) to %d for more",
            files,
            nodes,
            wanted,
        )
    return nodes, newcomers
