"""Whoever asks for a silo's blob over the wire gets it only if the silo or its owner lets it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.core_world import FakeNode, World
from support.served_run import Guest, ServedRun, free_addresses, served_run
from support.silo_run import make_folder
from support.silo_world import silo, work

from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire.certificates import make_key, make_request

SHARES = {"a": "public", "b": "operator", "c": "never"}
SOON_S = 20.0


class Scene:
    """A run of three silos up to its evaluation, served, with all its blobs."""

    def __init__(self, path: Path) -> None:
        self.folder = make_folder(path, free_addresses(), now=time.time())
        self.world = World(self.folder.manifest)
        self.nodes = [self._silo(name, share) for name, share in SHARES.items()]
        work(self.world, self.nodes, "evaluating")
        blobs, journal = BlobStore(self.folder.blobs), Journal(self.folder.journal)
        for unit_id, accepted in self.world.coordinator.state.finished.items():
            for ref in accepted.outputs:
                assert blobs.put(ref.name, f"{unit_id}/{ref.name}".encode()) == ref
        journal.append(self.world.journal)
        journal.close()

    def _silo(self, name: str, share: str) -> FakeNode:
        return silo(self.world, name, share=share, text=(96, 20, name * 64)).join()

    def guest(self, name: str) -> Guest:
        """The node with a certificate, as the enrolment port gives one."""
        key, node_id = make_key(), self.nodes["abc".index(name)].node_id
        request = make_request(key, name)
        certificate = self.folder.authority().issue_node(request, node_id, time.time())
        return Guest(node_id, key, certificate)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("silos"))


@pytest.fixture(scope="module")
def run(scene: Scene) -> Iterator[ServedRun]:
    with served_run(scene.folder) as served:
        yield served


def fetch(scene: Scene, run: ServedRun, name: str, unit_id: str, output: str) -> bytes | str:
    """The blob as this silo gets it, or why not."""
    outputs = scene.world.coordinator.state.finished[unit_id].outputs
    ref = next(ref for ref in outputs if ref.name == output)
    with run.channel(scene.guest(name)) as channel:
        asked = pb.GetBlobRequest(digest=bytes.fromhex(ref.digest), name=output)
        try:
            parts = list(pb_grpc.RunStub(channel).GetBlob(asked, timeout=SOON_S))
        except grpc.RpcError as error:
            return str(error.details())
    return b"".join(part.data for part in parts)


@pytest.mark.parametrize(
    ("unit_id", "output", "readers"),
    [
        ("silo_block/1/2", "router-1", "abc"),
        ("count/1/2/2", "counts", "b"),
        ("train_expert/0", "weights", "abc"),
        ("train_expert/1", "weights", "b"),
    ],
)
def test_a_blob_goes_to_who_may_have_it(
    scene: Scene, run: ServedRun, unit_id: str, output: str, readers: str
) -> None:
    for name in SHARES:
        got = fetch(scene, run, name, unit_id, output)
        if name in readers:
            assert got == f"{unit_id}/{output}".encode()
        else:
            assert isinstance(got, str)
            assert "is another silo's, and not for this node" in got


def test_what_the_owner_keeps_never_came(scene: Scene) -> None:
    finished = scene.world.coordinator.state.finished
    assert [finished[f"train_expert/{e}"].outputs for e in (2, 3)] == [(), ()]


def test_an_owner_that_says_never_later_is_obeyed_from_then_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with served_run(scene.folder) as run:
        assert isinstance(fetch(scene, run, "b", "train_expert/0", "weights"), bytes)
        node = scene.nodes[0]
        train, heldout, digest = node.text
        said = msg.Capabilities(
            corpus_digest=digest, train_sequences=train, heldout_sequences=heldout
        )
        key = bytes.fromhex(run.host.coordinator.state.nodes[node.node_id].signing_key)
        run.ask(msg.Join(node.node_id, 2, 1, key, said, 0, "never"))
        got = fetch(scene, run, "b", "train_expert/0", "weights")
        assert "is another silo's" in str(got)
