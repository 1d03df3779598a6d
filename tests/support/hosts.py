"""A host around a real journal and blob store in a folder, and a node that enters."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from support.core_world import make_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.clock import Clock, ManualClock
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` in an event loop of its own."""
    asyncio.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]


def open_host(
    folder: Path,
    manifest: RunManifest | None = None,
    clock: Clock | None = None,
    **options: Any,
) -> Host:
    """The host of `folder`, as each new process opens it."""
    journal = Journal(folder / "journal.sqlite")
    manifest = manifest or make_manifest()
    return Host(manifest, journal, folder / "blobs", clock or ManualClock(), **options)


async def enter(host: Host, name: str = "a") -> str:
    """Invite, enrol and join a node; returns its id."""
    now = host.clock.now()
    secret = hashlib.sha256(f"secret {name}".encode()).hexdigest()
    await host.ask(msg.MakeInvite(secret, now + 60))
    key = hashlib.sha256(f"key {name}".encode()).hexdigest()
    enrolled = await host.ask(msg.Enrol(secret, key, name))
    assert isinstance(enrolled, msg.Enrolled)
    capabilities = msg.Capabilities(corpus_digest=host.manifest.corpus_digest)
    await host.ask(msg.Join(enrolled.node_id, 1, 1, b"k" * 32, capabilities))
    return enrolled.node_id
