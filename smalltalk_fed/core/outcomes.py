"""What the outcome of a job changes: a division, segments, prices, a verdict, a bad result.

Rules: the outcome is of the job that is waited for. Why the run has to pause (a job that can't be
done, a dispute that only the operator can end) is returned; to pause is the coordinator's part.
"""

from __future__ import annotations

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.auditing import Auditing
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.reports import MAX_REASON, RESUME, Reports
from smalltalk_fed.errors import OurError


def take(
    out: Outbox,
    auditing: Auditing,
    reports: Reports,
    job: jmsg.Job,
    outcome: jmsg.Outcome,
    now: float,
) -> str:
    """Draw the consequences; returns why the run has to pause, if it has to.

    Raises:
        OurError: such a job has no such outcome.
    """
    match job, outcome:
        case jmsg.JudgeJob(), jmsg.Judged():
            return auditing.judged(job, outcome, now)
        case jmsg.JudgeJob(), jmsg.JobFailed(culprit=culprit, reason=reason):
            return auditing.undecided(job, culprit, reason[:MAX_REASON], now)
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
            return reports.unusable(outcome.culprit, outcome.reason, now)
        case _, jmsg.JobFailed():
            return f"{outcome.job_id}: {outcome.reason[:MAX_REASON]}{RESUME}"
        case _:
            raise OurError(f"{job.job_id} ended as {type(outcome).__name__}; this is a bug")
    return ""


def _moved(job: jmsg.PricesJob, figures: dict[str, float], now: float) -> silo_ev.PricesMoved:
    """The new prices, which a job names `price_E`, and what else it found."""
    prices = tuple(figures[f"price_{expert}"] for expert in range(len(job.prices)))
    rest = {name: value for name, value in figures.items() if not name.startswith("price_")}
    return silo_ev.PricesMoved(now, job.block, job.turn, prices, rest)
