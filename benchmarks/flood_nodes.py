"""The nodes of `flood.py`: fifty honest ones in a process, or one that floods.

Only what a node can do: its key and certificate, one connection, the run's methods. The
flooder keeps sixty-four calls under way and never waits as it is told.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the node's program does; before grpc

import grpc

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS, RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import convert, convert_transfer
from smalltalk_fed.wire.certificates import SERVER_NAME
from smalltalk_fed.wire.signing import SigningKey

STREAMS = 64
# More would only take each other's places.
AT_A_TIME = {"upload": 3, "download": 1, "compute": 1}
PART_BYTES = 256 * 1024
BEAT_S = 0.25
FETCH_EVERY = 8  # heartbeats
OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),
)

Table = dict[str, Any]


class Node:
    """One connection."""

    def __init__(self, table: Table, facts: dict[str, str]) -> None:
        self.manifest = RunManifest.from_bytes(table["manifest"].encode())
        credentials = grpc.ssl_channel_credentials(
            table["authority"].encode(), facts["key"].encode(), facts["certificate"].encode()
        )
        self.channel = grpc.aio.secure_channel(table["address"], credentials, OPTIONS)
        self.run = pb_grpc.RunStub(self.channel)
        self.node_id, self.key = facts["node_id"], SigningKey.create()

    def join(self, incarnation: int = 1) -> Awaitable[pb.JoinReply]:
        """Present a process."""
        capabilities = msg.Capabilities(corpus_digest=self.manifest.corpus_digest)
        version, public = PROTOCOL_VERSIONS[-1], self.key.public_bytes
        join = msg.Join(self.node_id, incarnation, version, public, capabilities)
        call: Awaitable[pb.JoinReply] = self.run.Join(convert.join_to_proto(join), timeout=60)
        return call


def known_blob(table: Table) -> BlobRef:
    """The largest blob that the coordinator has: an id list of the first round."""
    while not (found := list(Path(table["blobs"]).glob("[0-9a-f][0-9a-f]/*"))):
        time.sleep(0.1)
    largest = max(found, key=lambda path: path.stat().st_size)
    return BlobRef("share", largest.name, largest.stat().st_size)


async def fetch(node: Node, blob: BlobRef) -> int:
    """Download it; returns its size."""
    size = 0
    request = pb.GetBlobRequest(digest=bytes.fromhex(blob.digest), name=blob.name)
    async for part in node.run.GetBlob(request, timeout=60):
        size += len(part.data)
    return size


# -------------------------------------------------------------------------------------- honest


async def honest(table: Table) -> None:
    """Join, then ask and measure until a line comes in."""
    nodes = [Node(table, facts) for facts in table["honest"]]
    for node in nodes:
        await node.join()
    blob = await asyncio.to_thread(known_blob, table)
    rows: dict[str, Any] = {"exchange": [], "fetch": [], "failures": 0}
    say({"joined": len(nodes)})

    async def timed(what: str, call: Awaitable[object]) -> None:
        began, at = time.perf_counter(), time.monotonic()
        try:
            await call
            rows[what].append((at, time.perf_counter() - began))
        except grpc.aio.AioRpcError:
            rows["failures"] += 1

    async def live(node: Node) -> None:
        await asyncio.sleep(BEAT_S * random.random())
        for beat in itertools.count(random.randrange(FETCH_EVERY)):
            request = pb.ExchangeRequest(incarnation=1, wants_work=False)
            await timed("exchange", node.run.Exchange(request, timeout=60))
            if beat % FETCH_EVERY == 0:
                await timed("fetch", fetch(node, blob))
            await asyncio.sleep(BEAT_S * (0.5 + random.random()))

    tasks = [asyncio.create_task(live(node)) for node in nodes]
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    say(rows)


# --------------------------------------------------------------------------------------- floods


def flood_of(kind: str, table: Table, node: Node) -> Callable[[], Awaitable[int]]:
    """One call of this kind of flood; it returns the bytes that moved."""
    incarnations = itertools.count(2)
    blob = known_blob(table)
    junk = bytearray(os.urandom(min(8 << 20, size_limit(node.manifest, "parameters"))))
    numbers = itertools.count()

    async def exchange() -> int:
        await node.run.Exchange(pb.ExchangeRequest(incarnation=1, wants_work=False), timeout=60)
        return 0

    async def join() -> int:
        await node.join(next(incarnations))
        return 0

    async def garbage() -> int:
        method = node.channel.unary_unary("/smalltalk.v1.Run/Exchange")
        await method(os.urandom(1000) + b"\xff", timeout=60)
        return 0

    async def upload() -> int:
        data = next(numbers).to_bytes(8, "big") + bytes(junk[8:])
        ref = BlobRef("parameters", hashlib.sha256(data).hexdigest(), len(data))
        first = convert_transfer.upload_to_proto(
            convert_transfer.Upload(ref, "router_round/0/1", 0), data[:PART_BYTES]
        )
        cuts = range(PART_BYTES, len(data), PART_BYTES)
        parts = [first, *(pb.BlobPart(data=data[cut : cut + PART_BYTES]) for cut in cuts)]
        await node.run.PutBlob(iter(parts), timeout=60)
        return len(data)

    async def download() -> int:
        return await fetch(node, blob)

    async def compute() -> int:
        await asyncio.sleep(0)
        return len(hashlib.sha256(junk).digest()) * 0

    return {
        "compute": compute,
        "exchange": exchange,
        "join": join,
        "garbage": garbage,
        "upload": upload,
        "download": download,
    }[kind]


async def flood(table: Table, kind: str, number: int) -> None:
    """Between two lines on stdin, call without a pause."""
    node = Node(table, table["flooders"][number])
    await node.join()
    call, why = flood_of(kind, table, node), Counter[str]()
    rows: dict[str, Any] = {"calls": 0, "refused": 0, "dropped": 0, "bytes": 0}
    streams = AT_A_TIME.get(kind, STREAMS)
    say({"connected": 1})
    await asyncio.to_thread(sys.stdin.readline)

    async def stream() -> None:
        while True:
            rows["calls"] += 1
            try:
                rows["bytes"] += await call()
            except grpc.aio.AioRpcError as error:
                rows["refused"] += 1
                rows["dropped"] |= "is not heard" in str(error.details())
                why[f"{error.code().name}: {error.details()}"[:100]] += 1

    tasks = [asyncio.create_task(stream()) for _ in range(streams)]
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    say({**rows, "why": [f"{count} x {what}" for what, count in why.most_common(2)]})


def say(line: dict[str, Any]) -> None:
    """One JSON line for `flood.py`."""
    print(json.dumps(line), flush=True)


def main() -> None:
    """Read who to be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("kind")
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    table = json.loads(arguments.table.read_bytes())
    if arguments.kind == "honest":
        asyncio.run(honest(table))
    else:
        asyncio.run(flood(table, arguments.kind, arguments.node))
    os._exit(0)  # connections are not worth taking down one by one


if __name__ == "__main__":
    main()
