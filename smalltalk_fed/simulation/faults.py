"""Faults as plain data, addressed by logical points where there are any.

Rules: a fault says what goes wrong and where ("the coordinator, at its 17th commit, when the
events are durable and no reply has left"; "node 3, at its 2nd unit, half-way"), never by
whom it is carried out. A plan is a tuple of faults; any subset of it is a plan too, which is
what shrinking lives on. Times are seconds since the world's beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from smalltalk_fed.core.job_messages import (
    Job,
    JudgeJob,
    PricesJob,
    SegmentsJob,
)


class CommitPoint(StrEnum):
    """Where in a commit the coordinator dies."""

    LOST = "before the events are durable"
    DURABLE = "after the events are durable, before any reply"
    HALF_REPLIED = "after half of the replies"
    REPLIED = "after the replies, before blobs are dropped and jobs begun"


class UnitPoint(StrEnum):
    """Where in a unit a node fails."""

    COMPUTING = "while computing"
    COMPUTED = "after computing, before the upload ends"
    UPLOADED = "after the upload, before the result is answered"


@dataclass(frozen=True)
class CoordinatorCrash:
    """kill -9 of the coordinator; its clock may be set while it is down."""

    commit: int
    point: CommitPoint
    down_s: float
    clock_jump_s: float = 0.0


@dataclass(frozen=True)
class CoordinatorReboot:
    """The coordinator's machine restarts at some time, whatever it is at."""

    at_s: float
    down_s: float


@dataclass(frozen=True)
class NodeCrash:
    """kill -9 of a node's process; infinite `down_s`: it never comes back."""

    node: int
    unit: int  # counted from 1 over the node's life
    point: UnitPoint
    fraction: float  # of the computation, with COMPUTING
    down_s: float


@dataclass(frozen=True)
class NodeLeaves:
    """A clean stop in the middle of a unit: the coordinator is told."""

    node: int
    unit: int
    fraction: float
    down_s: float


@dataclass(frozen=True)
class NodeSleeps:
    """SIGSTOP, or a closed lid: the process is the same afterwards."""

    node: int
    at_s: float
    for_s: float


@dataclass(frozen=True)
class UnitFails:
    """The node can't do its nth unit and says so."""

    node: int
    unit: int


@dataclass(frozen=True)
class Partition:
    """These nodes and the coordinator don't hear each other."""

    nodes: tuple[int, ...]
    at_s: float
    for_s: float


@dataclass(frozen=True)
class SlowDisk:
    """Every commit of the coordinator takes `commit_s`."""

    at_s: float
    for_s: float
    commit_s: float


@dataclass(frozen=True)
class BadBlock:
    """The nth job finds the result of one of its inputs unusable."""

    job: int
    expert: int

    def culprit(self, job: Job) -> str:
        """The unit whose result is bad; empty if the job has none."""
        if isinstance(job, JudgeJob):
            return job.opinions[self.expert % len(job.opinions)][0]
        if isinstance(job, SegmentsJob):
            return f"shard/{self.expert % len(job.shards)}"
        if isinstance(job, PricesJob) or not job.scores:
            return ""
        return f"router_round/{self.expert % len(job.scores)}/{job.round - 1}"


@dataclass(frozen=True)
class BlobDamage:
    """After the nth commit one of the blobs that the run needs is found damaged.

    `which`: its place among them, 0..1. The operator puts it back from a backup, and resumes
    the run if it stopped for it, after `repair_s`.
    """

    commit: int
    which: float
    repair_s: float


@dataclass(frozen=True)
class OperatorPauses:
    """The operator pauses the run, and resumes it."""

    at_s: float
    for_s: float


@dataclass(frozen=True)
class OperatorRevokes:
    """The operator shuts a node out for good."""

    node: int
    at_s: float


Fault = (
    CoordinatorCrash
    | CoordinatorReboot
    | NodeCrash
    | NodeLeaves
    | NodeSleeps
    | UnitFails
    | Partition
    | SlowDisk
    | BadBlock
    | BlobDamage
    | OperatorPauses
    | OperatorRevokes
)
FOREVER_S = float("inf")


def draw_reboots(rng: Random, span_s: float, every_s: float) -> tuple[Fault, ...]:
    """Reboots of the coordinator's machine at random times, `every_s` on average."""
    reboots: list[Fault] = []
    at_s = rng.expovariate(1 / every_s)
    while at_s < span_s:
        reboots.append(CoordinatorReboot(at_s, rng.uniform(40.0, 400.0)))
        at_s += rng.expovariate(1 / every_s)
    return tuple(reboots)


def draw_plan(
    rng: Random, *, nodes: int, faults: int, span_s: float, lease_s: float, may_leave: int
) -> tuple[Fault, ...]:
    """A plan of so many faults within the first `span_s` or so; `may_leave` nodes for good."""
    plan: list[Fault] = []
    pauses = 0
    for _ in range(faults):
        node = rng.randrange(nodes)
        unit = 1 + int(rng.expovariate(0.4))
        down_s = rng.choice((1.0, 0.3 * lease_s, 1.2 * lease_s, 4.0 * lease_s))
        at_s, for_s = rng.uniform(0.0, span_s), rng.choice((2.0, 0.5, 1.5, 5.0)) * lease_s
        match rng.randrange(13):
            case 0 | 1 | 2:
                jump_s = rng.choice((0.0, 0.0, 0.0, 3600.0, -3600.0))
                point = rng.choice(tuple(CommitPoint))
                commit = 1 + int(rng.expovariate(1 / 25))
                plan.append(CoordinatorCrash(commit, point, min(down_s, 2 * lease_s), jump_s))
            case 3 | 4 | 5:
                if may_leave and rng.random() < 0.3:
                    may_leave, down_s = may_leave - 1, FOREVER_S
                unit_point = rng.choice((UnitPoint.COMPUTING, *UnitPoint))
                plan.append(NodeCrash(node, unit, unit_point, rng.random(), down_s))
            case 6:
                plan.append(NodeLeaves(node, unit, rng.random(), down_s))
            case 7:
                plan.append(NodeSleeps(node, at_s, for_s))
            case 8 | 9:
                together = rng.randrange(1, 1 + nodes)
                plan.append(
                    Partition(tuple(sorted(rng.sample(range(nodes), together))), at_s, for_s)
                )
            case 10:
                if rng.random() < 0.5:
                    plan.append(SlowDisk(at_s, for_s, rng.choice((1.0, 5.0, 1.5 * lease_s))))
                elif not pauses:
                    pauses += 1
                    plan.append(OperatorPauses(at_s, for_s))
            case 11:
                commit = 1 + int(rng.expovariate(1 / 25))
                plan.append(BlobDamage(commit, rng.random(), for_s))
            case _:
                if rng.random() < 0.5:
                    plan.append(UnitFails(node, unit))
                else:
                    plan.append(BadBlock(1 + rng.randrange(4), rng.randrange(4)))
    return tuple(plan)
