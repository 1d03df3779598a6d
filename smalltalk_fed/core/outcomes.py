"""What the outcome of a job changes: a division, segments, prices, a verdict, a bad result.

Rules: the outcome is of the job that is waited for. What moves the run (a job that can't be
done, a dispute that only the operator can end) is returned, and is the coordinator's to do.
"""

from __future__ import annotations

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.auditing import Auditing
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.phases import Trigger
from smalltalk_fed.core.reports import MAX_REASON, Reports
from smalltalk_fed.errors import OurError

Move = tuple[Trigger, str]  # the reason may be empty: then nothing moves


def take(
    out: Outbox,
    auditing: Auditing,
    reports: Reports,
    job: jmsg.Job,
    outcome: jmsg.Outcome,
    now: float,
) -> Move:
    """Draw the consequences.

    Raises:
        OurError: such a job has no such outcome.
    """
    match job, outcome:
        case jmsg.JudgeJob(), jmsg.Judged():
            return Trigger.PAUSE, auditing.judged(job, outcome, now)
        case jmsg.JudgeJob(), jmsg.JobFailed(culprit=culprit, reason=reason):
            return Trigger.PAUSE, auditing.undecided(job, culprit, reason[:MAX_REASON], now)
        case jmsg.AssignJob(), jmsg.Suspects():
            if not auditing.suspected(outcome.units, now):
                raise OurError(f"{job.job_id} suspects what was looked at; this is a bug")
        case jmsg.AssignJob(), jmsg.JobFinished():
            figures = dict(outcome.figures)
            out.emit(ev.RoundAssigned(now, job.round, outcome.outputs, figures))
            auditing.watch(now)
        case jmsg.SegmentsJob(), jmsg.JobFinished():
            out.emit(ev.SegmentsMade(now, outcome.outputs, dict(outcome.figures)))
            auditing.watch(now)
        case jmsg.PricesJob(), jmsg.JobFinished(figures=figures):
            out.emit(_moved(job, figures, now))
        case _, jmsg.JobFailed() if outcome.culprit:
            why = reports.unusable(outcome.culprit, outcome.reason, now)
            alone = isinstance(job, jmsg.PricesJob)  # only its own silo can count again
            return Trigger.PAUSE if alone else Trigger.FAIL, why
        case _, jmsg.JobFailed():
            return Trigger.FAIL, f"{outcome.job_id}: {outcome.reason}"
        case _:
            raise OurError(f"{job.job_id} ended as {type(outcome).__name__}; this is a bug")
    return Trigger.PAUSE, ""


def _moved(job: jmsg.PricesJob, figures: dict[str, float], now: float) -> silo_ev.PricesMoved:
    """The new prices, which a job names `price_E`, and what else it found."""
    prices = tuple(figures[f"price_{expert}"] for expert in range(len(job.prices)))
    rest = {name: value for name, value in figures.items() if not name.startswith("price_")}
    return silo_ev.PricesMoved(now, job.block, job.turn, prices, rest)
