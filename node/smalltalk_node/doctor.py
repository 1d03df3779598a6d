"""`smalltalk-node doctor`: what this machine has, and whether a run would work on it.

Rules: every check says one sentence and looks at one thing; nothing is changed, nothing is
joined, and no check stops the others. Times are compared with the coordinator's, which it
says on the enrolment port.
"""

from __future__ import annotations

import functools
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from smalltalk_fed import __version__
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, SmalltalkError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import certificate_facts
from smalltalk_fed.wire.values import cut
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.identity import Identity, NodeFolder
from smalltalk_fed.worksite.limits import Limits, refuse
from smalltalk_fed.worksite.silo_text import is_corpus
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import Newcomer

CLOCK_WARN_S = 60.0
CERTIFICATE_WARN_S = 5 * 86400.0
DISK_WARN_BYTES = 2 << 30

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One check's answer; `exit_code` is that of the error behind a `fail`."""

    check: str
    verdict: Verdict
    text: str
    exit_code: int = 0


def examine(folder: NodeFolder, corpus: Path | None) -> Iterator[Finding]:
    """All findings, one after the other; those of the run only where the folder has one."""
    yield from _machine_findings(folder)
    identity = folder.identity() if folder.enrolled else None
    known = corpus or (Path(identity.corpus) if identity and identity.corpus else None)
    yield _guarded("corpus", lambda: _corpus(folder, known))
    if identity is None:
        text = f"{folder.path} belongs to no run yet; `smalltalk-node join TOKEN`"
        yield Finding("run", "warn", text)
        return
    yield Finding("run", "ok", f"node {identity.node_id} ('{identity.name}') of the run "
                  f"{identity.run_id or 'at ' + identity.run_address}")  # fmt: skip
    yield _guarded("certificate", lambda: _certificate(folder))
    for address in identity.enrolments:
        yield from _enrolment_port(folder, address)
    for address in identity.runs:
        only = replace(identity, run_address=address, run_addresses=())
        yield _guarded("run port", functools.partial(_run_port, folder, only))


def _machine_findings(folder: NodeFolder) -> Iterator[Finding]:
    found = machine.probe(folder.path)
    yield Finding("program", "ok", f"smalltalk-fed {__version__}, Python "
                  f"{platform.python_version()}, {platform.platform(terse=True)}")  # fmt: skip
    yield _torch()
    yield _guarded("limits", lambda: Finding("limits", "ok", _limits(folder)))
    memory = f"{found.memory_bytes / 2**30:.1f} GiB of memory, {found.threads} threads"
    yield Finding("machine", "ok", memory)
    free = shutil.disk_usage(folder.path).free
    yield Finding(
        "disk",
        "ok" if free > DISK_WARN_BYTES else "warn",
        f"{free / 2**30:.1f} GiB free at {folder.path}",
    )


def _limits(folder: NodeFolder) -> str:
    limits = Limits.load(folder.path)
    stored = folder.file("manifest.json")
    if stored.exists():
        on_gpu = machine.likely_device() == "cuda"
        refuse(RunManifest.from_bytes(stored.read_bytes()), limits, on_gpu=on_gpu)
    return f"this machine's own: {limits.describe()}"


def _torch() -> Finding:
    if not machine.package_version("torch"):
        text = "torch is not installed; install smalltalk-fed[node]"
        return Finding("torch", "fail", text, exit_code=2)
    devices = ", ".join(machine.exact_devices())
    return Finding("torch", "ok", f"torch {machine.package_version('torch')}: {devices}")


def _corpus(folder: NodeFolder, path: Path | None) -> Finding:
    if path is None:
        return Finding("corpus", "warn", "no corpus is known yet; name its folder with --corpus")
    stored = folder.file("manifest.json")
    run = RunManifest.from_bytes(stored.read_bytes()) if stored.exists() else None
    if path.exists() and not is_corpus(path):
        if run is not None and is_private(run):
            return Finding("corpus", "ok", f"text of this machine's own in {path}; never leaves")
        if run is None:
            text = f"text in {path}: of use in a private run; others need a prepared corpus"
            return Finding("corpus", "warn", text)
    corpus = TokenCorpus.open(path)
    text = (
        f"{corpus.digest[:12]}: {corpus.manifest.train.sequences:,} training and "
        f"{corpus.manifest.heldout.sequences:,} held-out sequences of "
        f"{corpus.manifest.sequence_tokens} tokens in {path}"
    )
    if run is not None and not is_private(run) and run.corpus_digest != corpus.digest:
        wanted = run.corpus_digest[:12]
        raise DataError(f"{text}; the run's corpus is {wanted}, so this is another one")
    return Finding("corpus", "ok", text)


def _certificate(folder: NodeFolder) -> Finding:
    facts = certificate_facts(folder.certificate)
    now = time.time()
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.not_after))
    if problem := facts.problem(now):
        text = f"{problem}; `run` renews it if the coordinator still knows this node"
        return Finding("certificate", "warn", text)
    soon = facts.not_after - now < CERTIFICATE_WARN_S
    text = f"valid until {until}" + ("; `run` renews it" if soon else "")
    return Finding("certificate", "ok", text)


def _enrolment_port(folder: NodeFolder, address: str) -> Iterator[Finding]:
    try:
        with Newcomer(address, folder.authority) as newcomer:
            before = time.time()
            reply = newcomer.explain(folder.certificate)
            after = time.time()
    except SmalltalkError as error:
        yield _failed("enrolment port", error)
        return
    if reply.welcome:
        yield Finding("enrolment port", "ok", f"{address} answers and knows this node")
    else:
        text = f"{address} answers, but: {cut(reply.reason)}"
        yield Finding("enrolment port", "fail", text, exit_code=3)
    off_s = (before + after) / 2 - reply.now
    text = f"{abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} the coordinator's"
    if abs(off_s) > CLOCK_WARN_S + (after - before):
        yield Finding("clock", "warn", f"{text}; set the clock of one of the two")
    else:
        yield Finding("clock", "ok", text)


def _run_port(folder: NodeFolder, identity: Identity) -> Finding:
    connection = Connection(folder, identity, Ledger())
    try:
        question = pb.BlobStateRequest(digest=bytes(32), name="doctor")
        connection.call(connection.stub.BlobState, question, "blob_state", 10.0)
    finally:
        connection.close()
    return Finding("run port", "ok", f"{identity.run_address} answers and lets this node in")


def _guarded(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except SmalltalkError as error:
        return _failed(check, error)


def _failed(check: str, error: SmalltalkError) -> Finding:
    return Finding(check, "fail", str(error), error.exit_code)
