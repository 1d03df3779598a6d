"""A whole node and a coordinator that plays a script, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from smalltalk_node.program import Options, Program
from support.loopback_coordinator import Served
from support.tiny_run import tiny_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.mixture.idlists import encode_ids
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.signing import SigningKey, sign_manifest, sign_unit
from smalltalk_fed.worksite.identity import NodeFolder

STOP = msg.Order("the run is finished", stop=True)
KEY = SigningKey.create()
Answer = msg.Order | grpc.RpcError | Callable[[msg.Exchange], msg.Order]


class Stage:
    """A node folder, a script, and what came of it."""

    def __init__(self, served: Served, corpus: TokenCorpus, folder: NodeFolder) -> None:
        self.served, self.corpus, self.folder = served, corpus, folder
        self.loopback = served.loopback
        self.manifest = tiny_manifest(corpus)

    def play(self, *answers: Answer, manifest: RunManifest | None = None) -> str:
        """Run the node while each question gets the next answer; returns the end's reason."""
        self.script(*answers, manifest=manifest)
        return self.program().run()

    def script(self, *answers: Answer, manifest: RunManifest | None = None) -> None:
        self.manifest = manifest or self.manifest
        left = iter(answers)

        def exchange(question: msg.Exchange) -> msg.Order:
            answer = next(left)
            if isinstance(answer, Exception):
                raise answer
            return answer(question) if callable(answer) else answer

        self.loopback.behaviour.exchange = exchange
        self.loopback.behaviour.join = self.welcome
        self.loopback.behaviour.sign = self.sign

    def welcome(self, join: msg.Join) -> convert.Welcome:
        data = self.manifest.to_bytes()
        joined = msg.Joined(join.node_id, "part of the run")
        return convert.Welcome(joined, data, sign_manifest(KEY, data), KEY.public_bytes)

    def sign(self, question: msg.Exchange, unit: Unit) -> bytes:
        who = (self.manifest.run_id, question.node_id, question.incarnation)
        return sign_unit(KEY, *who, unit)

    def program(self) -> Program:
        return Program(self.folder, Options(self.corpus.folder, "cpu", 1))

    def unit(self, unit_id: str, **inputs: bytes) -> Unit:
        refs = tuple(
            self.loopback.put(name.replace("_", "-"), data) for name, data in inputs.items()
        )
        return Unit(UnitKey.parse(unit_id), refs)

    def work(self, unit: Unit) -> msg.Exchange:
        """Do one unit and return what the node said when it was done."""

        def accept(question: msg.Exchange) -> msg.Order:
            done = question.finished
            return msg.Order("taken", accepted=done.unit_id if done else "", stop=True)

        self.play(msg.Order("do this", unit=unit), accept)
        return self.loopback.exchanges[-1]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.folder.file("node-status.json").read_text())
        return found


def ids(count: int = 16) -> bytes:
    return encode_ids(np.arange(count))
