"""Nodes of a finished run, each the owner of one expert: planted in the journal, nobody trained."""

from __future__ import annotations

from pathlib import Path

from smalltalk_node.joining import enrol
from support.served_run import ServedRun
from support.tiny_mixture import EXPERT, write_model

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.wire.token import JoinToken, new_secret, secret_sha256
from smalltalk_fed.worksite.identity import NodeFolder


def finish(run: ServedRun, node_ids: list[str]) -> None:
    """Let the run be finished, expert e trained by the e-th of these; it is served anew."""
    run.stop()
    journal, now = Journal(run.folder.journal), run.clock.now()
    events: list[ev.Event] = [ev.NodeJoined(now, node_id, "ab" * 32) for node_id in node_ids]
    events.append(ev.PhaseChanged(now, Trigger.EVALUATED, Phase.FINISHED, "done"))
    events += [
        ev.UnitAccepted(now, f"train_expert/{expert}", node_id, 1, (), {}, "ab" * 64, 1.0)
        for expert, node_id in enumerate(node_ids)
    ]
    journal.append(events)
    journal.close()
    run.start()


def node_folder(run: ServedRun, path: Path, name: str) -> NodeFolder:
    """A node's folder, enrolled over the enrolment port, with the run's manifest."""
    secret, end = new_secret(), int(run.clock.now()) + 3600
    run.ask(msg.MakeInvite(secret_sha256(secret), end))
    addresses, authority = run.folder.addresses, run.folder.authority()
    token = JoinToken(addresses.run, addresses.enrolment, authority.certificate_der, secret, end)
    folder = NodeFolder.open(path)
    enrol(folder, token, name)
    folder.file("manifest.json").write_bytes(run.folder.manifest.to_bytes())
    return folder


def keep_expert(folder: NodeFolder, run: ServedRun, expert: int) -> Path:
    """An untrained model where the node keeps this expert; returns its folder."""
    manifest = run.folder.manifest
    place = folder.place("experts") / manifest.run_id / str(expert)
    write_model(place, EXPERT, manifest.vocabulary, b"expert %d" % expert)
    return place
