"""One worker process for the core's jobs, so that no node waits for an answer meanwhile.

Rules: a job's outcome is a message, done or failed with the reason, where the run itself is
the reason. The machine's trouble never fails a run: no room on the disk, too little memory
(a process that dies is replaced a few times first) or an input that is damaged are raised,
and the job is asked for again later.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.errors import SmalltalkError, WorldError
from smalltalk_fed.host.jobs import end_with_parent, run_job_counted

JOB_TRIES = 3


class Worker:
    """The worker process; it starts with the first job.

    `executor`: where jobs run instead; it is shut down with the worker.
    """

    def __init__(
        self, manifest: RunManifest, blob_folder: Path, executor: Executor | None = None
    ) -> None:
        self._manifest, self._blob_folder = manifest, blob_folder
        self._pool = executor
        self.cpu_s = 0.0  # of the present process, as of its last job

    async def run(self, job: jmsg.Job) -> jmsg.Outcome:
        """Do `job`; its outputs are in the blob store when this returns.

        Raises:
            DamagedBlob: an input is damaged or gone.
            WorldError: the disk refuses, or there is too little memory.
        """
        for _ in range(JOB_TRIES):
            try:
                outcome: jmsg.Outcome
                outcome, self.cpu_s = await asyncio.get_running_loop().run_in_executor(
                    self._workers(), run_job_counted, self._manifest, job, self._blob_folder
                )
                return outcome
            except BrokenProcessPool:
                self._pool = None
            except WorldError:
                raise
            except (SmalltalkError, ValueError) as error:
                return jmsg.JobFailed(job.job_id, str(error))
            except (OSError, MemoryError) as error:
                raise _trouble(job, str(error) or "no memory") from None
        raise _trouble(job, f"the worker process died {JOB_TRIES} times")

    def stop(self) -> None:
        """Take no more jobs; the process ends after the one that it is at."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _workers(self) -> Executor:
        if self._pool is None:
            # Spawned, not forked: gRPC's threads don't survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                max_workers=1, mp_context=context, initializer=end_with_parent
            )
        return self._pool


def _trouble(job: jmsg.Job, why: str) -> WorldError:
    return WorldError(
        f"{job.job_id} can't be computed ({why}); check the machine's memory and disk, then "
        "start again: nothing is lost"
    )
