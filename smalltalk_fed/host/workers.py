"""One worker process for the core's jobs, so that no node waits for an answer meanwhile.

Rules: a job's outcome is always a message: done, or failed with the reason; a process that
dies (out of memory, most likely) is replaced and the job tried again a few times. An input
that is damaged on our own disk is not the job's failure: it is raised, and the job is asked
for again once the blob is there anew.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import DamagedBlob, SmalltalkError
from smalltalk_fed.host.jobs import end_with_parent, run_job_counted

JOB_TRIES = 3


class Worker:
    """The worker process; it starts with the first job."""

    def __init__(self, manifest: RunManifest, blob_folder: Path) -> None:
        self._manifest, self._blob_folder = manifest, blob_folder
        self._pool: ProcessPoolExecutor | None = None
        self.cpu_s = 0.0  # of the present process, as of its last job

    async def run(self, job: msg.Job) -> msg.JobFinished | msg.JobFailed:
        """Do `job`; its outputs are in the blob store when this returns.

        Raises:
            DamagedBlob: an input is damaged or gone.
        """
        outcome: msg.JobFinished | msg.JobFailed
        for attempt in range(1, JOB_TRIES + 1):
            try:
                outcome, self.cpu_s = await asyncio.get_running_loop().run_in_executor(
                    self._workers(), run_job_counted, self._manifest, job, self._blob_folder
                )
                return outcome
            except BrokenProcessPool:
                self._pool = None
                why = f"the worker process died {attempt} times; it may need more memory"
                outcome = msg.JobFailed(job.job_id, why)
            except DamagedBlob:
                raise
            except (SmalltalkError, ValueError, OSError, MemoryError) as error:
                return msg.JobFailed(job.job_id, str(error) or type(error).__name__)
        return outcome

    def stop(self) -> None:
        """Take no more jobs; the process ends after the one that it is at."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: gRPC's threads don't survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                max_workers=1, mp_context=context, initializer=end_with_parent
            )
        return self._pool
