"""A real `smalltalk-coordinator serve` and enrolled nodes that speak to it as the test likes.

The run has a corpus manifest but no text: the coordinator needs none, and nobody trains.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from smalltalk_coordinator.operator_client import OperatorClient
from support.deployment import BIN, ENV, free_port

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS, CorpusManifest, canonical_json
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.certificates import (
    SERVER_NAME,
    key_to_pem,
    make_key,
    make_request,
    public_key_sha256,
)
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.wire.token import new_secret, secret_sha256


@dataclass
class Enrolled:
    """A node's credentials, and what it presents itself with."""

    node_id: str
    key: bytes  # PEM
    certificate: bytes  # PEM
    signing_key: SigningKey = field(default_factory=SigningKey.create)

    def join(self, manifest: Any, incarnation: int = 1) -> pb.JoinRequest:
        """Its `Join`."""
        capabilities = msg.Capabilities(corpus_digest=manifest.corpus_digest)
        public = self.signing_key.public_bytes
        version = PROTOCOL_VERSIONS[-1]
        return convert.join_to_proto(
            msg.Join(self.node_id, incarnation, version, public, capabilities)
        )


@dataclass
class RealCoordinator:
    """A run folder, nodes let in beforehand, and a process that serves."""

    folder: RunFolder
    nodes: list[Enrolled]
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def address(self, port: str = "run") -> tuple[str, int]:
        """Host and port of the nodes' (`run`) or the newcomers' (`enrolment`) port."""
        host, _, number = str(getattr(self.folder.addresses, port)).rpartition(":")
        return host, int(number)

    def credentials(self, node: Enrolled) -> grpc.ChannelCredentials:
        """What a node dials with."""
        authority = self.folder.authority().certificate_pem
        return grpc.ssl_channel_credentials(authority, node.key, node.certificate)

    def channel(self, node: Enrolled) -> grpc.Channel:
        """A connection of its own."""
        return grpc.secure_channel(
            self.folder.addresses.run, self.credentials(node), options=CHANNEL_OPTIONS
        )

    def aio_channel(self, node: Enrolled) -> grpc.aio.Channel:
        """The same for an event loop."""
        return grpc.aio.secure_channel(
            self.folder.addresses.run, self.credentials(node), options=CHANNEL_OPTIONS
        )

    def status(self) -> dict[str, Any]:
        """As the operator sees it."""
        with OperatorClient(self.folder) as client:
            return client.status()

    def memory_mb(self, name: str = "VmRSS") -> float:
        """Resident memory of the serving process now, or at its highest (`VmHWM`)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise AssertionError(f"no {name}")

    def files(self) -> int:
        """Open files of the serving process."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


CHANNEL_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),  # a connection a channel
    ("grpc.max_send_message_length", -1),
)


@contextlib.contextmanager
def real_coordinator(
    path: Path, nodes: int, files: int = 0, **settings: dict[str, object]
) -> Iterator[RealCoordinator]:
    """Serve a new run in `path` with so many enrolled nodes; `settings` are tables of run.toml.

    `files`: the limit of open files that the process gets; 0: as this one.
    """
    folder = make_folder(path, settings)
    enrolled, log = enrol(folder, nodes), path / "coordinator.log"
    command = [str(BIN / "smalltalk-coordinator"), "serve", str(folder.path)]
    if files:
        command = ["prlimit", f"--nofile={files}:{files}", *command]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True, env=ENV)
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), log.read_text()
        yield RealCoordinator(folder, enrolled, process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()


def make_folder(path: Path, settings: dict[str, Any]) -> RunFolder:
    """A run folder over a corpus of which only the manifest is there."""
    corpus = path / "corpus"
    (corpus / "tokenizer").mkdir(parents=True)
    (corpus / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    split = {
        "shards": [{"file": "train-00000.bin", "sequences": 100_000, "sha256": "0" * 64}],
        "documents": 100_000,
    }
    manifest = CorpusManifest.model_validate(
        {
            "sequence_tokens": 64,
            "dtype": "uint16",
            "vocabulary": 1000,
            "tokenizer_sha256": hashlib.sha256(b"{}").hexdigest(),
            "train": split,
            "heldout": {"shards": [], "documents": 0},
        }
    )
    (corpus / "corpus.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))
    tables = {
        "sequence": {"length": 64, "prefix": 16},
        "router": {"rounds": 100, "chunk_sequences": 1000, "model": "router-mini"},
        "expert": {"model": "mini"},
        **settings,
    }
    addresses = Addresses(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    config, text = parse_config(tables, "test"), json.dumps(tables)
    return RunFolder.create(path / "run", config, f"# {text}\n", corpus, addresses, time.time())


def enrol(folder: RunFolder, count: int) -> list[Enrolled]:
    """Let nodes in under one invitation, as the enrolment port would, all at once."""
    authority, now, secret = folder.authority(), time.time(), secret_sha256(new_secret())
    nodes = []
    with folder.locked():
        journal = Journal(folder.journal)
        coordinator = Coordinator.replay(folder.manifest, journal.events(), now)
        events = coordinator.handle(msg.MakeInvite(secret, now + 86400, count), 1, now).events
        for number in range(count):
            key = make_key()
            request = make_request(key, f"node-{number}")
            enrolment = msg.Enrol(secret, public_key_sha256(request), f"node-{number}")
            ready = coordinator.handle(enrolment, 1, now)
            answer = ready.replies[0].answer
            assert isinstance(answer, msg.Enrolled)
            events += ready.events
            certificate = authority.issue_node(request, answer.node_id, now)
            nodes.append(Enrolled(answer.node_id, key_to_pem(key), certificate))
        journal.append(events)
        journal.close()
    return nodes
