"""Every limit that a coordinator holds its peers to, in one place; docs/limits.md is made of it.

Fields of messages are bounded in `values`, blobs by the manifest in `core.catalogue`. Here is
how often, how much at once and how much in all: constants where a limit is the same for every
run, `RunLimits` where it follows from the manifest.

Rules: a node that does its work never meets one, however fast it and its line are: what a unit
needs is allowed at once, and again when its result counts. Whoever exceeds one is told
its name and number. Enforcing is the coordinator's part (`gate`, `ports`, `uploads`, `loose`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.core.catalogue import outputs_of, size_limit
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.units import UnitKey, UnitKind

MIB = 1 << 20

# ------------------------------------------------------------------------------- connections
CONNECTIONS_MAX = 4096  # of the nodes' port; a node needs one
NEWCOMERS_MAX = 256  # connections of the enrolment port
HANDSHAKE_S = 15.0  # TCP, TLS and HTTP/2's settings together
IDLE_S = 60.0  # a connection without a call is closed
NEWCOMER_AGE_S = 120.0  # a connection of the enrolment port is closed, whatever it does
NEWCOMER_GRACE_S = 20.0  # and its calls end
STREAMS_MAX = 32  # calls at a time on one connection of the nodes' port; a node needs six
NEWCOMER_STREAMS_MAX = 4
HEADERS_BYTES_MAX = 8192  # of one call; twice that ends the connection
MESSAGE_BYTES_MAX = 320 * 1024  # a part of an upload, 256 KiB, and its names

# ------------------------------------------------------------------------- calls of one caller
CALLS_PER_S = 20.0
TURNS_AT_ONCE = 8.0  # calls that are worked on at once; more come by turns
TURN_S = 0.005  # from one to the next, however many come
COSTLY_CALL = 10.0  # of Join, Leave and a result, in calls: they are checked, logged or durable
FAULT_CALLS = 5.0  # what a refused call costs more
MESSAGE_S = 20.0  # until a call's message is here
WAIT_S = 10.0  # that a refusal for speed asks for, at the least
TOLD_MAX = 8  # refusals for speed that are answered at once
HOLD_S = 2.0  # the next ones are kept waiting so long first
HELD_MAX = 512  # refusals that wait, of all callers
DROP_AFTER = 40  # refusals for speed until nothing is heard any more
FORGIVE_S = 5.0  # one refusal is forgiven in so long
DROP_S = 300.0  # for so long
CALLERS_MAX = 65_536  # callers that are remembered; the one heard least recently goes first

# ---------------------------------------------------------------------------------- transfers
UPLOAD_PLACES = 4  # uploads at full speed, of all nodes; one of each
UPLOADS_ASIDE = 24  # uploads that wait for their own lines
UPLOAD_STALL_S = 150.0  # without a byte, and an upload ends; it can go on later
BYTES_LEAST = 64 * MIB  # of a caller's budget each way, however small the run's models are
BUDGET_S = 60.0  # a budget that was used up is full again after so long
LOOSE_BLOBS_MAX = 8  # a node's uploads that no accepted result names, unfinished ones included
LOOSE_S = 7 * 86400.0  # they are kept so long
DISK_RESERVE_BYTES = 256 * MIB  # of the disk stay free for the journal (5 % of a small one)

# -------------------------------------------------------------------------------------- queues
INBOX_MAX = 16_384  # messages that wait for the core
PROMPTS_WAITING_MAX = 32  # at one node that serves its experts, those that it has in hand included
PROMPTS_WAITING_IN_ALL_MAX = 256
ANSWER_S = 300.0  # until a prompt's answer is there, or its node is not asked any more
SERVING_LOOK_S = 10.0  # how often a silent line is held against the certificate and the journal

WAIT_KEY = "smalltalk-wait-ms"  # trailing metadata of a refusal for speed: when to ask again


@dataclass(frozen=True)
class CallLimits:
    """What one caller may do. Budgets are full at first, and again when a result counts."""

    calls_burst: float
    calls_per_s: float = CALLS_PER_S
    costs: Mapping[str, float] = field(default_factory=dict)  # by method; others cost 1
    in_flight: Mapping[str, int] = field(default_factory=dict)  # by method
    in_flight_else: int = 4
    bytes_up: float = BYTES_LEAST
    bytes_down: float = BYTES_LEAST
    callers_max: int = CALLERS_MAX


@dataclass(frozen=True)
class DiskLimits:
    """Uploads that no accepted result names."""

    node_bytes: int
    total_bytes: int
    node_blobs: int = LOOSE_BLOBS_MAX
    kept_s: float = LOOSE_S


@dataclass(frozen=True)
class RunLimits:
    """The limits that follow from a run's manifest."""

    unit_bytes_up: int  # most that one unit brings
    unit_bytes_down: int  # most that one unit needs
    nodes: CallLimits
    disk: DiskLimits

    @classmethod
    def of(cls, manifest: RunManifest) -> RunLimits:
        """The limits of a run."""
        run, up, down = manifest.config.run, unit_bytes_up(manifest), unit_bytes_down(manifest)
        silos = is_private(manifest)
        inputs = manifest.experts * (1 + silos) + 16  # every router, and experts that are public
        nodes = CallLimits(
            calls_burst=200.0 + 4 * inputs,
            costs={"Join": COSTLY_CALL, "Leave": COSTLY_CALL, "Withdraw": COSTLY_CALL},
            # A question replaces the one before; uploads that a broken line left here are
            # replaced, too.
            in_flight={
                "Exchange": 2,
                "PutBlob": 3,
                "GetBlob": 1,
                "Join": 2,
                "Leave": 2,
                "Serve": 1,
                "Generate": PROMPTS_WAITING_MAX,
                "Measure": PROMPTS_WAITING_MAX,
            },
            bytes_up=max(BYTES_LEAST, 2 * up),
            bytes_down=max(BYTES_LEAST, 2 * down),
        )
        at_once = manifest.experts * (1 + run.spare_copies) + LOOSE_BLOBS_MAX
        hosted = max(len(own) for own in seat_experts(manifest.config)) if silos else 0
        blobs = max(LOOSE_BLOBS_MAX, 2 * hosted)
        return cls(up, down, nodes, DiskLimits(2 * up, up * at_once, blobs))


# An address may be that of a thousand machines behind one router that all come back at once.
NEWCOMERS = CallLimits(
    calls_burst=1000.0,
    calls_per_s=50.0,
    in_flight_else=64,
    callers_max=4096,
)


def unit_bytes_up(manifest: RunManifest) -> int:
    """Bytes of the largest outputs that one unit may bring."""
    keys = [
        UnitKey(UnitKind.ROUTER_ROUND, 0, 1),
        UnitKey(UnitKind.SHARD, index=0),
        UnitKey(UnitKind.TRAIN_EXPERT, 0),
        UnitKey(UnitKind.AUDIT, 0, 1),
        *(UnitKey(UnitKind.SILO_BLOCK, index=1, seat=seat) for seat in range(_seats(manifest))),
    ]
    if manifest.config.expert.init == "seed":
        keys.append(UnitKey(UnitKind.TRAIN_SEED))
    return max(
        sum(size_limit(manifest, name) for name in outputs_of(manifest, key)) for key in keys
    )


def unit_bytes_down(manifest: RunManifest) -> int:
    """Bytes of the largest inputs that one unit may have, at 8 bytes an id."""
    router, expert = manifest.router_blob_bytes_max, manifest.expert_blob_bytes_max
    chunk, all_ids = manifest.config.router.chunk_sequences, manifest.train_sequences
    # Nothing of an expert comes down in a run that leaves them where they are.
    travels = manifest.config.expert.collects or manifest.config.expert.init == "seed"
    weights = expert if travels else 0
    routing = 2 * router + 16 + 8 * chunk  # with the state before, for an opinion on it
    sharding = manifest.experts * router
    training = 2 * weights + 16 + 8 * all_ids  # a seed, the state part-way and the segment
    judging = weights + sharding + 16 + 8 * all_ids  # an opinion on an expert
    if is_private(manifest):  # every router, and every expert that others may have
        return sharding + weights * manifest.experts + 16 + 8 * all_ids
    return max(routing, training, judging)


def _seats(manifest: RunManifest) -> int:
    return len(seat_experts(manifest.config)) if is_private(manifest) else 0
