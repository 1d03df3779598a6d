"""What a step of the coordinator produced, collected while it is decided.

`emit` is the only place where hard state changes while the run is alive: the event is applied
and put down for the journal together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.retention import needed_blobs, released_by
from smalltalk_fed.core.state import HardState
from smalltalk_fed.errors import OurError

# What these let go may be named by another result, too: a liar may hand in others' blobs.
_BY_CONTENT = (
    ev.RoundAssigned,
    ev.UnitRejected,
    ev.NodeQuarantined,
    silo_ev.ExpertWithdrawn,
    ev.PhaseChanged,
)


@dataclass
class Ready:
    """What the caller must do now, in this order: commit, reply, run."""

    events: list[ev.Event] = field(default_factory=list)
    replies: list[msg.Reply] = field(default_factory=list)
    jobs: list[jmsg.Job] = field(default_factory=list)
    released: list[str] = field(default_factory=list)  # digests that nothing needs any more
    decisions: list[msg.Decision] = field(default_factory=list)

    def add(self, other: Ready) -> None:
        """Append what a later step produced."""
        self.events += other.events
        self.replies += other.replies
        self.jobs += other.jobs
        self.released += other.released
        self.decisions += other.decisions


class Outbox:
    """Collects a `Ready`."""

    def __init__(self, state: HardState) -> None:
        self._state = state
        self._ready = Ready()

    @property
    def state(self) -> HardState:
        """What `emit` changes."""
        return self._state

    def emit(self, event: ev.Event) -> None:
        """Change hard state."""
        released = released_by(self._state, event)
        self._state.apply(event)
        if released and isinstance(event, _BY_CONTENT):
            needed = needed_blobs(self._state)
            released = tuple(digest for digest in released if digest not in needed)
        self._ready.released += released
        self._ready.events.append(event)

    def reply(self, conversation: int, answer: msg.Answer) -> None:
        """Answer a question."""
        self._ready.replies.append(msg.Reply(conversation, answer))

    def job(self, job: jmsg.Job) -> None:
        """Ask for a computation."""
        self._ready.jobs.append(job)

    def decide(self, what: str, reason: str, *, warning: bool = False) -> None:
        """Note a decision for the log."""
        self._ready.decisions.append(msg.Decision(what, reason, warning))

    def take(self) -> Ready:
        """All that was collected; the outbox is empty then."""
        ready, self._ready = self._ready, Ready()
        if len(ready.replies) != len({reply.conversation for reply in ready.replies}):
            raise OurError("a conversation was answered twice; this is a bug")
        return ready
