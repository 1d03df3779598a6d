"""What is simulated: a run's manifest, a fleet, a network, disks, faults. Plain frozen data.

Rules: a scenario and nothing else decides what happens. `volunteers` is the large one: weeks,
home machines, all that is usual there. `under_faults` is the small one for searching: a few
nodes, a few rounds, much goes wrong, everything drawn from the seed. Speeds are relative to
a reference node; work is given in seconds of that node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.simulation.effort import Effort
from smalltalk_fed.simulation.faults import (
    Fault,
    NodeCrash,
    OperatorRevokes,
    draw_plan,
    draw_reboots,
)
from smalltalk_fed.simulation.liars import KINDS, Liars
from smalltalk_fed.simulation.world import DAY_S, World

Policy = Literal["chosen", "paper"]
SPEED_SPREAD = 30.0
_SIGMA = math.log(SPEED_SPREAD) / 4  # two standard deviations to either side
SLOWEST, FASTEST = SPEED_SPREAD**-0.5, SPEED_SPREAD**0.5
CORPUS = "c0" * 32
_REBOOT_EVERY_S = 7 * DAY_S  # of the coordinator's small VM, on average


@dataclass(frozen=True)
class Network:
    """Delays of messages are lognormal about `latency_s`; bytes a second of a home's lines."""

    latency_s: float = 0.05
    jitter: float = 0.5  # sigma of the delays' logarithms
    loss: float = 0.0  # of messages, each way
    duplicate: float = 0.0  # of requests
    late: float = 0.0  # share of messages that are held up
    late_s: float = 20.0  # and for how long, on average
    up_bytes_per_s: float = 1.25e6  # median; 10 Mbit/s
    down_bytes_per_s: float = 6.25e6


@dataclass(frozen=True)
class Fleet:
    """How many machines, how fast, and when they are there."""

    nodes: int
    spread: bool = True  # speeds over a factor of 30; all 1 if not
    diurnal: bool = False
    always_on: float = 0.15  # share of machines that are never switched off
    life_days: float = 75.0  # until a volunteer leaves for good, on average
    arrive_within_s: float = 0.0  # most machines come within so long
    late_share: float = 0.3  # of volunteers who come later, within `late_s`
    late_s: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Everything that a world is made from."""

    seed: int
    manifest: RunManifest
    fleet: Fleet
    work: Effort
    network: Network = Network()
    commit_s: float = 0.008  # of the coordinator's disk
    policy: Policy = "chosen"
    liars: Liars = Liars()
    faults: tuple[Fault, ...] = ()
    limit_s: float = 90 * DAY_S
    sample_s: float = 3600.0  # between two looks from outside
    must_end: bool = True  # not to end within `limit_s` breaks a rule
    replay_every_events: int = 1000
    snapshot_events: int = 5000  # between two snapshots of the coordinator's state
    assumed: dict[str, str] = field(default_factory=dict)  # said beside the report

    @property
    def experts(self) -> int:
        """E."""
        return self.manifest.experts


def draw_speed(world: World, node: int) -> float:
    """A machine's speed: lognormal, cut off so that the fastest is 30 times the slowest."""
    speed = world.stream("speed", node).lognormvariate(0.0, _SIGMA)
    return min(max(speed, SLOWEST), FASTEST)


def quantile_speed(top: float) -> float:
    """Speed that the share `top` of all machines exceeds."""
    from statistics import NormalDist

    speed = math.exp(_SIGMA * NormalDist().inv_cdf(1.0 - top))
    return min(max(speed, SLOWEST), FASTEST)


def volunteers(
    nodes: int,
    experts: int,
    days: float,
    seed: int,
    policy: Policy = "chosen",
    liars: Liars = Liars(),
) -> Scenario:
    """Home machines for weeks: half of them away at any time, some leaving for good.

    The work is sized so that the run takes about `days`: an expert on a machine of the speed
    that the fastest `experts` of those present exceed on average, with a loss for changing
    hands; routing is a twentieth of it.
    """
    present = max(1.0, nodes / 2)
    share = min(1.0, experts / present)
    speed = quantile_speed(share / 2) * min(1.0, present / experts)
    total_s = days * DAY_S * speed * 0.58
    rounds = max(4, min(32, round(days)))
    steps = 10_000
    chunk = max(experts, 20_000)
    paper = policy == "paper"
    config = parse_config(
        {
            "run": {
                "seed": seed,
                "experts": experts,
                "nodes_to_start": min(experts, max(1, nodes // 4)),
                "lease_s": DAY_S if paper else 900.0,
                "poll_s": 600.0,
                "patience_s": DAY_S,
                "idle_wait_s": 7200.0,
                "spare_copies": 0 if paper else 1,
            },
            "router": {"rounds": rounds, "chunk_sequences": chunk},
            "expert": {
                "steps": steps,
                "collect": "final" if paper else f"every {steps // 50} steps",
            },
            "assignment": {"method": "paper" if paper else "optimal"},
            "audit": {"rate": 0.0} if paper else {},
        },
        "simulation",
    )
    router_s = total_s / 20 / rounds
    work = Effort(router_s, router_s, total_s, router_s, job_s=20.0)
    manifest = RunManifest(
        run_id=f"simulated-{seed}",
        created_unix_s=0,
        config=config,
        corpus_digest=CORPUS,
        tokenizer_sha256=CORPUS,
        vocabulary=32_000,
        train_sequences=chunk * max(1, experts // 2),
        heldout_sequences=1000,
    )
    limit_s = (8 if paper else 4) * days * DAY_S
    assumed = {
        "machines": f"{nodes:,}, speeds over a factor of {SPEED_SPREAD:.0f}, half away at any time",
        "the coordinator": f"reboots once in {_REBOOT_EVERY_S / DAY_S:.0f} days",
        "an expert": f"{total_s / DAY_S:.1f} days of a machine of speed 1",
        "routing": f"{rounds} rounds of {router_s / 3600:.1f} hours of a machine of speed 1",
    }
    return Scenario(
        seed=seed,
        manifest=manifest,
        fleet=Fleet(
            nodes,
            diurnal=True,
            arrive_within_s=min(DAY_S, 0.05 * days * DAY_S),
            late_s=days * DAY_S,
        ),
        work=work,
        network=Network(loss=0.001, duplicate=0.0005, late=0.001),
        policy=policy,
        liars=liars,
        faults=draw_reboots(World(seed).stream("reboots"), limit_s, _REBOOT_EVERY_S),
        limit_s=limit_s,
        must_end=False,
        assumed=assumed,
    )


def under_faults(
    seed: int,
    *,
    nodes: int | None = None,
    experts: int | None = None,
    only: tuple[int, ...] | None = None,
    calm: bool = False,
) -> Scenario:
    """A small run in which much goes wrong; all of it drawn from the seed.

    `nodes` and `experts` override what was drawn, `only` keeps the faults of these numbers,
    `calm` gives a network that loses and delays nothing.
    """
    rng = World(seed).stream("scenario")
    drawn_nodes, drawn_experts = rng.randint(3, 12), rng.randint(2, 4)
    rounds, lease_s = rng.randint(1, 4), rng.choice((20.0, 60.0, 120.0))
    collect = rng.choice(("final", "never", "every 10 steps", "every 30 steps"))
    init = rng.choice(("fresh", "fresh", "seed"))
    capacity = rng.choice(("equal", "throughput"))
    patience_s = rng.choice((0.0, 120.0, 1800.0))
    copies, heldout = rng.choice((0, 1, 1, 2)), rng.choice((0, 7))
    unit_s, lossy = rng.choice((10.0, 60.0, 200.0)), rng.random() < 0.6
    network = Network(
        latency_s=rng.choice((0.01, 0.1, 0.5)),
        loss=rng.choice((0.01, 0.05, 0.1)) if lossy else 0.0,
        duplicate=rng.choice((0.0, 0.05)) if lossy else 0.0,
        late=rng.choice((0.0, 0.05)) if lossy else 0.0,
        late_s=rng.choice((5.0, 60.0)),
    )
    spread, commit_s = rng.random() < 0.5, rng.choice((0.001, 0.05, 0.5))
    work = Effort(unit_s, 0.5 * unit_s, 8 * unit_s, 0.3 * unit_s, job_s=rng.choice((0.1, 5.0)))
    arrive_s = rng.choice((0.0, 2.0, 10 * unit_s))
    # Experts that stay home die with their machine: then nobody leaves for good.
    may_leave = 0 if collect == "never" else (drawn_nodes - 1) // 2
    plan = draw_plan(
        rng,
        nodes=drawn_nodes,
        faults=rng.randint(0, 9),
        span_s=(2 * rounds + 12) * unit_s,
        lease_s=lease_s,
        may_leave=may_leave,
    )
    late = World(seed).stream("revocation")
    if may_leave and late.random() < 0.2:
        at_s = late.uniform(0.0, (2 * rounds + 12) * unit_s)
        plan = (*plan, OperatorRevokes(late.randrange(drawn_nodes), at_s))
    audit, liars = _audits(seed, nodes or drawn_nodes, sum(isinstance(f, _FOR_GOOD) for f in plan))
    experts = experts or drawn_experts
    chunk = 20 * experts + 3
    config = parse_config(
        {
            "run": {
                "seed": seed,
                "experts": experts,
                "nodes_to_start": 1 + (nodes or drawn_nodes) // 4,
                "lease_s": lease_s,
                "poll_s": max(10.0, unit_s / 3),
                "patience_s": patience_s,
                "idle_wait_s": rng.choice((0.0, 30.0)),
                "spare_copies": copies,
            },
            "sequence": {"length": 16, "prefix": 8},
            "router": {"rounds": rounds, "chunk_sequences": chunk, "model": "router-mini"},
            "expert": {
                "model": "mini", "steps": 100, "batch_sequences": 2,
                "collect": collect, "init": init,
            },
            "assignment": {"capacity": capacity},
            "audit": audit,
            "compute": {"checkpoint_s": max(1.0, 0.4 * unit_s)},
        },
        "simulation",
    )  # fmt: skip
    manifest = RunManifest(
        run_id=f"faults-{seed}",
        created_unix_s=0,
        config=config,
        corpus_digest=CORPUS,
        tokenizer_sha256=CORPUS,
        vocabulary=300,
        train_sequences=2 * chunk + 1,
        heldout_sequences=heldout,
    )
    return Scenario(
        seed=seed,
        manifest=manifest,
        fleet=Fleet(nodes or drawn_nodes, spread, arrive_within_s=arrive_s),
        work=work,
        network=Network() if calm else network,
        commit_s=commit_s,
        liars=liars,
        faults=plan if only is None else tuple(plan[i] for i in only if i < len(plan)),
        limit_s=DAY_S / 2,
        sample_s=20.0,
        replay_every_events=12,
        snapshot_events=15,
    )


_FOR_GOOD = (NodeCrash, OperatorRevokes)


def _audits(seed: int, nodes: int, lost: int) -> tuple[dict[str, float], Liars]:
    """How often results are looked at, and liars, as long as enough honest nodes are left.

    To put an accuser out takes its victim and two more that look at the work.
    """
    rng = World(seed).stream("audits")
    audit = {
        "rate": rng.choice((0.0, 0.1, 0.5, 1.0)),
        "first_units": rng.choice((0, 1, 2)),
        "wait_s": rng.choice((30.0, 200.0, 600.0)),
    }
    most = max(0, nodes - lost - 4)
    if not audit["rate"] or not most or rng.random() < 0.6:
        return audit, Liars()
    count = rng.randint(1, min(most, 3))
    return audit, Liars(kind=rng.choice(KINDS), honest_units=rng.choice((0, 0, 3)), count=count)
