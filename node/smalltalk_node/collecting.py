"""Weights of an unfinished expert go out in a thread of their own, while training goes on.

Rules: one state at a time, since the next file is only written when this one is gone; nobody
waits for a slow upload, neither training nor its end. The digest is noted in the unit's
folder before anybody hears of it, so that this node knows its own weights again. A state that
can't go out is left out, and said: the unit itself may be fine. After `close` nothing more is
told, and a transfer ends between two parts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.worksite.cache import ref_of
from smalltalk_node.patience import Dropped

log = logging.getLogger("smalltalk.node")

COLLECTOR_THREAD = "collector"


class Collector:
    """Collects the states of one unit in work."""

    def __init__(
        self,
        unit: Unit,
        folder: Path,
        upload: Callable[[BlobRef, Path, threading.Event], None],
        tell: Callable[[Result], None],
    ) -> None:
        """`folder` is the unit's; `tell` is called with each state that is uploaded."""
        self._unit, self._folder = unit, folder
        self._upload, self._tell = upload, tell
        self._closed = threading.Event()

    def on_state(self, step: int, path: Path) -> None:
        """Take a file over; returns at once. Called by training's threads."""
        arguments = (step, path)
        threading.Thread(
            target=self._collect, args=arguments, name=COLLECTOR_THREAD, daemon=True
        ).start()

    def close(self) -> None:
        """The unit is done or dropped."""
        self._closed.set()

    def _collect(self, step: int, path: Path) -> None:
        from smalltalk_fed.train.lineage import note_handed_out

        facts = {"unit": self._unit.unit_id, "step": step}
        try:
            ref = ref_of("weights", path)
            note_handed_out(self._folder, step, ref.digest)
            self._upload(ref, path, self._closed)
            figures = {"step": float(step), "from_step": float(self._unit.start_step)}
            if not self._closed.is_set():
                self._tell(Result(self._unit.unit_id, (ref,), figures))
                log.info("collected", extra={"facts": facts})
        except Dropped:
            return
        except (SmalltalkError, OSError) as error:
            log.warning("weights are not collected: %s", error, extra={"facts": facts})
        finally:
            if not self._closed.is_set():  # else the file may be another training's already
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
