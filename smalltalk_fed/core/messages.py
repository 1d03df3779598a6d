"""What the coordinator's state machine is told, and what it answers.

Frozen values without a carrier's types; `smalltalk_fed.wire` turns them to protobuf. Times
are seconds since the Unix epoch, durations seconds. Every request may be said again: the
answer to a repetition is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smalltalk_fed.core.units import Result, Unit

# ---------------------------------------------------------------- requests of the operator


@dataclass(frozen=True)
class MakeInvite:
    """A new invitation; only the secret's digest is ever stored."""

    secret_sha256: str
    expires_at: float
    uses: int = 1
    name: str = ""


@dataclass(frozen=True)
class CancelInvite:
    """Withdraw the invitation whose digest begins with `prefix`."""

    prefix: str


@dataclass(frozen=True)
class Revoke:
    """Shut a node out for good."""

    node_id: str
    reason: str = "revoked by the operator"


@dataclass(frozen=True)
class Pause:
    """Give out no work until `Resume`."""

    reason: str = "paused by the operator"


@dataclass(frozen=True)
class Resume:
    """Continue a paused run."""


@dataclass(frozen=True)
class Readmit:
    """Let a quarantined node work again."""

    node_id: str


@dataclass(frozen=True)
class Withdraw:
    """Take experts out of the mixture for good; none named: all that are the node's.

    `by_owner`: the node asks for itself (its id is the certificate's); else the operator does.
    """

    experts: tuple[int, ...] = ()
    node_id: str = ""
    by_owner: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Done:
    """The answer to an operator's request, or an owner's; `reason` says what happened."""

    reason: str


# --------------------------------------------------------------------- requests of a node


@dataclass(frozen=True)
class Enrol:
    """Ask to be let in; `key_sha256` is the digest of the public key to be certified."""

    secret_sha256: str
    key_sha256: str
    name: str


@dataclass(frozen=True)
class Enrolled:
    """Let in under `node_id`; the carrier issues the certificate."""

    node_id: str


@dataclass(frozen=True)
class Capabilities:
    """What a node says of itself. The counts of sequences are a silo's, in a private run."""

    device: str = "cpu"
    threads: int = 1
    memory_bytes: int = 0
    tokens_per_s: float = 0.0
    corpus_digest: str = ""
    corpus_bytes: int = 0
    software: str = ""
    train_sequences: int = 0
    heldout_sequences: int = 0


@dataclass(frozen=True)
class Join:
    """An enrolled node's process presents itself. `signing_key`: raw Ed25519 public key.

    With an empty corpus digest it only asks what the run is. In a private run also: which seat it
    wants (-1: any), and who may have its experts' weights (never, operator, public).
    """

    node_id: str
    incarnation: int
    protocol_version: int
    signing_key: bytes
    capabilities: Capabilities = Capabilities()
    seat: int = -1
    share: str = "never"


@dataclass(frozen=True)
class Joined:
    """The node is part of the run."""

    node_id: str
    reason: str


@dataclass(frozen=True)
class Working:
    """A unit that the node is at; `fraction` in 0..1."""

    unit_id: str
    fraction: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A unit that the node could not do, and why."""

    unit_id: str
    reason: str


@dataclass(frozen=True)
class Exchange:
    """What a node has done and is doing; `wants_work` asks for the next order.

    `collected` is the state of the expert that is `working`: its weights at the figure "step",
    reached from "from_step" on; signed like a finished unit.
    """

    node_id: str
    incarnation: int
    working: Working | None = None
    finished: Result | None = None
    failed: Failure | None = None
    wants_work: bool = True
    collected: Result | None = None


@dataclass(frozen=True)
class Leave:
    """The node goes; its leases are free at once."""

    node_id: str
    incarnation: int
    reason: str = ""


@dataclass(frozen=True)
class Order:
    """The answer to `Exchange`.

    At most one of `unit` and `stop` is set; neither means: carry on, or ask again at once
    (the question was held as long as the run allows).
    """

    reason: str
    accepted: str = ""  # id of the finished unit that counts now, or counted before
    cancel: str = ""  # id of the unit that the node should drop
    unit: Unit | None = None
    stop: bool = False
    failed: bool = False  # with stop: the run failed, or the node was shut out
    heartbeat_s: float = 30.0  # say something again after so long
    wait_s: float = 0.0  # before the next question
    collected: int = 0  # step of the state that came with the question and is kept now


@dataclass(frozen=True)
class Left:
    """The answer to `Leave`."""

    released: tuple[str, ...]


Request = (
    MakeInvite
    | CancelInvite
    | Revoke
    | Readmit
    | Pause
    | Resume
    | Withdraw
    | Enrol
    | Join
    | Exchange
    | Leave
)
Answer = Done | Enrolled | Joined | Order | Left


# ----------------------------------------------------------------------------------- Ready


@dataclass(frozen=True)
class Reply:
    """An answer and the conversation that it belongs to."""

    conversation: int
    answer: Answer


@dataclass(frozen=True)
class Decision:
    """Something decided, and why; what is logged, shown in status and asserted in tests."""

    what: str
    reason: str
    warning: bool = False  # somebody should look
