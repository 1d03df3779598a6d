"""Light nodes for `load.py`: the real conversation over real mutual TLS, without the training.

One process of these holds some hundreds of nodes. Each has a key, a certificate and a
connection of its own, speaks through `core.Session` and the product's own conversion and
signatures, and "works" by waiting a drawn time and then uploading weights and scores of the
size and form that the run asks for. No torch. What was measured is printed as one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the node's program does; before grpc

import grpc
import numpy as np

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS, RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.session import Session
from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.mixture.scores import encode_scores
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import convert, convert_transfer
from smalltalk_fed.wire.certificates import SERVER_NAME
from smalltalk_fed.wire.signing import SigningKey, sign_result
from smalltalk_fed.wire.tensors import expected_llama_tensors
from smalltalk_fed.wire.values import digest_to_proto

PART_BYTES = 256 * 1024
CALL_S = 120.0
OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Weights:
    """A router's weights as the run wants them; every copy differs in its last number."""

    def __init__(self, manifest: RunManifest) -> None:
        shapes = expected_llama_tensors(manifest.config.router.model, manifest.vocabulary)
        table, at = {}, 0
        for name, shape in shapes.items():
            end = at + 4 * int(np.prod(shape))
            table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
            at = end
        header = json.dumps(table).encode()
        numbers = np.random.default_rng(0).normal(size=at // 4 - 1).astype("<f4").tobytes()
        self._body = struct.pack("<Q", len(header)) + header + numbers
        self._hash = hashlib.sha256(self._body)

    def copy(self, value: float) -> tuple[BlobRef, bytes]:
        """The blob's reference, and the four bytes that it ends with."""
        tail, digest = struct.pack("<f", value), self._hash.copy()
        digest.update(tail)
        size = len(self._body) + len(tail)
        return BlobRef("parameters", digest.hexdigest(), size), tail

    def parts(self, tail: bytes) -> list[bytes]:
        """The blob in parts, as a node sends it."""
        last = len(self._body) - len(self._body) % PART_BYTES
        cuts = range(0, last, PART_BYTES)
        return [self._body[cut : cut + PART_BYTES] for cut in cuts] + [self._body[last:] + tail]


@dataclass
class Measured:
    """What the nodes of this process saw while the clock was running."""

    exchange_s: list[float] = field(default_factory=list)  # answered at once
    held_s: list[float] = field(default_factory=list)  # questions for work
    upload_s: list[float] = field(default_factory=list)
    uploaded_bytes: int = 0
    results: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class Node:
    """One light node."""

    def __init__(self, facts: dict[str, str], shared: Shared) -> None:
        self.facts, self.shared = facts, shared
        self.session = Session(facts["node_id"], 1)
        self.signing_key = SigningKey.create()
        self.woken = asyncio.Event()
        self.working: asyncio.Task[None] | None = None
        self.has: set[str] = set()  # digests of weights that it made or fetched
        self.in_touch = False

    async def live(self) -> None:
        """Join and take part until cancelled."""
        credentials = grpc.ssl_channel_credentials(
            self.shared.authority, self.facts["key"].encode(), self.facts["certificate"].encode()
        )
        async with grpc.aio.secure_channel(self.shared.address, credentials, OPTIONS) as channel:
            self.stub = pb_grpc.RunStub(channel)
            await self._join()
            while not self.session.ended:
                todo = self.session.tick(time.time())
                if todo.say is not None:
                    await self._ask(todo.say)
                    continue
                due = self.session.deadline() or time.time() + 1.0
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.woken.wait(), max(0.0, due - time.time()))
                self.woken.clear()
            self.in_touch = False

    async def _join(self) -> None:
        manifest = self.shared.manifest
        join = msg.Join(
            self.session.node_id,
            self.session.incarnation,
            PROTOCOL_VERSIONS[-1],
            self.signing_key.public_bytes,
            msg.Capabilities(corpus_digest=manifest.corpus_digest),
        )
        while not self.in_touch:
            try:
                await self.stub.Join(convert.join_to_proto(join), timeout=CALL_S)
                self.in_touch = True
            except grpc.aio.AioRpcError as error:
                self._failed("join", error)
                await asyncio.sleep(1.0 + random.random())

    async def _ask(self, question: msg.Exchange) -> None:
        if question.finished:  # so that the answer is not held until there is new work
            question = replace(question, wants_work=False)
        request, began = convert.exchange_to_proto(question), time.perf_counter()
        try:
            reply = await self.stub.Exchange(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self._failed("exchange", error)
            self.in_touch = False
            self.session.lost(time.time(), random.random())
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                await self._join()
            return
        took, order = time.perf_counter() - began, convert.order_from_proto(reply)
        self.in_touch = True
        at_once = not question.wants_work or order.wait_s > 0
        if self.shared.counting:
            measured = self.shared.measured
            (measured.exchange_s if at_once else measured.held_s).append(took)
            measured.results += question.finished is not None
        todo = self.session.handle(order, time.time())
        if todo.drop and self.working:
            self.working.cancel()
        if todo.start:
            self.working = asyncio.create_task(self._work(todo.start))

    async def _work(self, unit: Unit) -> None:
        try:
            for ref in unit.inputs:
                if ref.digest not in self.has:
                    await self._fetch(ref)
            await asyncio.sleep(random.expovariate(1 / self.shared.work_s))
            weights, tail = self.shared.weights.copy(random.random())
            # Every block differs: it begins elsewhere, and lies some steps of the encoding lower.
            shift, steps = random.randrange(self.shared.scores.shape[1]), random.randrange(64)
            scores_N = np.roll(self.shared.scores[random.randrange(16)], shift) - steps / 32
            scores = encode_scores(scores_N)
            block = BlobRef("scores", hashlib.sha256(scores).hexdigest(), len(scores))
            await self._upload(unit, weights, self.shared.weights.parts(tail))
            await self._upload(unit, block, [scores])
            self.has = {weights.digest}
            result = Result(unit.unit_id, (weights, block), {"loss_mean": 5.0})
            run_id, session = self.shared.manifest.run_id, self.session
            signature = sign_result(
                self.signing_key, run_id, session.node_id, session.incarnation, unit, result
            )
            session.finish(replace(result, signature=signature), time.time())
        except grpc.aio.AioRpcError as error:
            self._failed("transfer", error)
            self.session.fail(unit.unit_id, str(error.details())[:100], time.time())
        self.woken.set()

    async def _fetch(self, ref: BlobRef) -> None:
        request = pb.GetBlobRequest(digest=digest_to_proto(ref.digest), name=ref.name)
        async for _ in self.stub.GetBlob(request, timeout=CALL_S):
            pass

    async def _upload(self, unit: Unit, ref: BlobRef, datas: list[bytes]) -> None:
        asked = pb.BlobStateRequest(digest=digest_to_proto(ref.digest), name=ref.name)
        state = await self.stub.BlobState(asked, timeout=CALL_S)
        if state.complete:
            return
        first = convert_transfer.upload_to_proto(
            convert_transfer.Upload(ref, unit.unit_id, 0), datas[0]
        )
        parts = [first, *(pb.BlobPart(data=data) for data in datas[1:])]
        began = time.perf_counter()
        await self.stub.PutBlob(iter(parts), timeout=CALL_S)
        if self.shared.counting:
            self.shared.measured.upload_s.append(time.perf_counter() - began)
            self.shared.measured.uploaded_bytes += ref.size

    def _failed(self, what: str, error: grpc.aio.AioRpcError) -> None:
        self.shared.measured.failures[f"{what}: {error.code().name}: {error.details()}"[:160]] += 1


class Shared:
    """What all nodes of this process have in common."""

    def __init__(self, table: dict[str, object]) -> None:
        self.address = str(table["address"])
        self.authority = str(table["authority"]).encode()
        self.manifest = RunManifest.from_bytes(str(table["manifest"]).encode())
        self.work_s = float(str(table["work_s"]))
        self.weights = Weights(self.manifest)
        count = self.manifest.config.router.chunk_sequences
        self.scores = np.random.default_rng(1).normal(-850, 60, (16, count)).astype(np.float32)
        self.measured = Measured()
        self.counting = False


async def drive(table: dict[str, object], nodes: list[dict[str, str]]) -> None:
    """Let the nodes arrive, then measure between the lines `count` and `stop` on stdin."""
    shared = Shared(table)
    alive = [Node(facts, shared) for facts in nodes]
    tasks = []
    for node in alive:
        tasks.append(asyncio.create_task(node.live()))
        await asyncio.sleep(float(str(table["arrive_s"])) / len(alive))
    while not all(node.in_touch for node in alive) and not shared.measured.failures:
        await asyncio.sleep(0.05)
    say({"joined": sum(node.in_touch for node in alive)})
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    shared.counting, cpu_s = True, sum(os.times()[:2])
    await loop.run_in_executor(None, sys.stdin.readline)
    shared.counting = False
    measured = shared.measured
    say(
        {
            "exchange_s": measured.exchange_s,
            "held_s": measured.held_s,
            "upload_s": measured.upload_s,
            "uploaded_bytes": measured.uploaded_bytes,
            "results": measured.results,
            "failures": dict(measured.failures),
            "lost": sum(not node.in_touch for node in alive),
            "cpu_s": sum(os.times()[:2]) - cpu_s,
        }
    )
    sys.stdout.flush()
    os._exit(0)  # a thousand connections are not worth taking down one by one


def say(line: dict[str, object]) -> None:
    """One JSON line for `load.py`."""
    print(json.dumps(line), flush=True)


def main() -> None:
    """Read what to do from a file that `load.py` wrote."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--step", type=int, required=True)
    arguments = parser.parse_args()
    table = json.loads(arguments.table.read_bytes())
    random.seed(table["seed"] * 1000 + arguments.first)
    asyncio.run(drive(table, table["nodes"][arguments.first :: arguments.step]))


if __name__ == "__main__":
    main()
