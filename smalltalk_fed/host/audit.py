"""Proves from a run folder alone that no sequence is trained on twice in a pass or skipped.

Rules: it reads, and neither locks nor changes anything, so that it may look at a run that is
served, stopped or backed up; the journal is read in short transactions, and is followed to
its end. Every event is checked against all before it (`audit_events`) and against the
journal's own chain; every blob that is there is hashed. A blob that nothing needs any more
and that is gone is counted as not kept: its digest is known, and signed. Memory does not
grow with rounds. What it can't see is whether a node did the work that it signed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from smalltalk_fed.core import events as ev
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import DamagedBlob, SmalltalkError, UserError
from smalltalk_fed.host.audit_events import Trail
from smalltalk_fed.host.chain import rows_after
from smalltalk_fed.host.database import explained
from smalltalk_fed.host.findings import Finding
from smalltalk_fed.host.folder import RunFolder

CHECKS = (
    "shares", "routers", "segments", "experts", "audits", "signatures", "blobs", "journal",
)  # fmt: skip
FINDINGS_KEPT = 100
BATCH_EVENTS = 5_000


@dataclass(frozen=True)
class AuditReport:
    """What was proved, up to which event, and what was not as it must be."""

    run_id: str
    phase: str
    events: int
    counts: dict[str, int]  # rounds, sequences, results, signatures, taken_back, ...
    passes_whole: int
    pass_sequences: int  # of the pass under way
    blobs_kept: int
    blobs_not_kept: dict[str, int]  # by name
    wrong: dict[str, int]  # findings by check
    findings: tuple[Finding, ...]  # the first hundred

    @property
    def proved(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def verdict(self) -> str:
        """One sentence."""
        if self.proved:
            return (
                f"proved over {self.events} events: in the lineage of every accepted state no "
                "sequence is trained on twice in a pass and none is skipped"
            )
        first, total = self.findings[0], sum(self.wrong.values())
        more = f" ({total - 1} more)" if total > 1 else ""
        return (
            f"not proved: {first.where}: {first.what}{more}; nothing should be built on this "
            "run before it is known how that came about"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; names are stable."""
        return {
            **{name: value for name, value in vars(self).items() if name != "findings"},
            "findings": [vars(finding) for finding in self.findings],
            "proved": self.proved,
            "verdict": self.verdict(),
        }


def audit(folder: RunFolder) -> AuditReport:
    """Read the whole run.

    Raises:
        UserError: the run is private: which sequences were used, only its silos know.
        WorldError: the disk refuses, or the journal itself is damaged.
    """
    if is_private(folder.manifest):
        raise UserError(
            "the text of a private run stays on its nodes, and no list of it ever comes here: "
            "what was trained on what can't be proved from this folder."
        )
    return _Audit(folder).run()


@dataclass
class _Audit:
    folder: RunFolder
    events: int = 0
    kept: int = 0
    not_kept: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def run(self) -> AuditReport:
        trail = Trail(self.folder.manifest, self._read, self._found)
        self._follow(trail)
        trail.finish()
        return AuditReport(
            run_id=self.folder.manifest.run_id,
            phase=trail.state.phase.value,
            events=self.events,
            counts=dict(trail.counts),
            passes_whole=trail.passes.whole,
            pass_sequences=trail.passes.used,
            blobs_kept=self.kept,
            blobs_not_kept=dict(self.not_kept),
            wrong=dict(self.wrong),
            findings=tuple(self.findings),
        )

    def _follow(self, trail: Trail) -> None:
        """All events, and those that come meanwhile, until what the run needs is there."""
        while True:
            before = self.events
            for event in journal_events(self.folder.journal, before):
                self.events += 1
                try:
                    trail.take(event)
                except (SmalltalkError, LookupError, ValueError) as error:
                    what = f"it does not follow from those before it ({error})"
                    self._found(Finding("journal", f"event {self.events}", what))
                    return
                for ref in _refs(event):
                    self._look_at(ref)
            gone = [ref for ref in needed_blobs(trail.state).values() if not self._has(ref)]
            if not gone or self.events == before:
                break  # or a coordinator is at it: what is gone may be needed no more
        for ref in gone:
            self._found(Finding("blobs", f"{ref.name} {ref.digest[:12]}", "it is needed and gone"))

    def _look_at(self, ref: BlobRef) -> None:
        """Hash a blob that an event names, if it is kept."""
        try:
            found = self._sha256(ref)
        except FileNotFoundError:
            self.not_kept[ref.name] += 1
            return
        except OSError as error:
            found = error.strerror or ""
        self.kept += 1
        if found != ref.digest:
            what = "its bytes are not those of its name"
            self._found(Finding("blobs", f"{ref.name} {ref.digest[:12]}", what))

    def _read(self, ref: BlobRef) -> bytes:
        """A blob's bytes, checked; small ones only."""
        try:
            data = self._path(ref).read_bytes()
        except OSError as error:
            raise DamagedBlob(ref.digest, f"can't be read ({error.strerror})") from None
        if hashlib.sha256(data).hexdigest() != ref.digest:
            raise DamagedBlob(ref.digest, "is damaged")
        return data

    def _sha256(self, ref: BlobRef) -> str:
        with self._path(ref).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _has(self, ref: BlobRef) -> bool:
        return self._path(ref).exists()

    def _path(self, ref: BlobRef) -> Path:
        return self.folder.blobs / ref.digest[:2] / ref.digest

    def _found(self, finding: Finding) -> None:
        self.wrong[finding.check] += 1
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(finding)


def _refs(event: ev.Event) -> tuple[BlobRef, ...]:
    match event:
        case ev.RoundAssigned():
            return event.shares
        case ev.UnitAccepted() | ev.WeightsCollected():
            return event.outputs
        case ev.SegmentsMade():
            return event.segments
    return ()


def journal_events(path: Path, after: int) -> Iterator[ev.Event]:
    """Events whose numbers are over `after`; no transaction is open while one is looked at."""
    while True:
        with explained(path, "read"):
            db = _open(path)
            try:
                db.execute("BEGIN")
                rows = list(islice(rows_after(db, path, after), BATCH_EVENTS))
            finally:
                db.close()
        for number, kind, body in rows:
            yield ev.from_row(kind, body)
            after = number
        if len(rows) < BATCH_EVENTS:
            return


def _open(path: Path) -> sqlite3.Connection:
    """For reading alone; a copy on a disk that can't be written to is read as it is."""
    address = path.resolve().as_uri()
    for options in ("mode=ro", "mode=ro&immutable=1"):
        db = sqlite3.connect(f"{address}?{options}", uri=True, isolation_level=None)
        db.text_factory = bytes
        try:
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
            break
        except sqlite3.OperationalError:
            if "immutable" in options:
                raise
            db.close()
    return db
