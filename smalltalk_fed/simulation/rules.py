"""The rules that no run may break, by name."""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """What holds in every run, whatever happens."""

    ACCEPTED_ONCE = "no unit is accepted twice"
    COPIES = "no more live leases of a unit than the allowed copies"
    ONE_SEGMENT = "every sequence is in exactly one segment"
    REPLAY = "hard state equals the replay of the journal"
    COMMITTED = "no reply before its event is durable"
    KEPT = "progress is never lost after an acknowledgement"
    BLOBS = "no order names a blob that is not there"
    ENDS = "the run ends if enough nodes live"
    TIME = "a deadline moves when it is ticked"
    SOUND = "the core never fails"
    OWN_WORK = "no node audits its own work"
    SETTLED = "nothing counts towards a division, the segments or the mixture while it is audited"
    OUT = "a quarantined node holds no lease"
    HONEST = "no honest node is quarantined"


class Violation(Exception):
    """A rule is broken."""

    def __init__(self, rule: Rule, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule, self.detail = rule, detail
