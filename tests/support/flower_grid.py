"""Flower's grid with the nodes in threads of this process, and faults by the message's number.

What is between the two apps is Flower's part, and tried with the real thing in
`test_flwr_run_simulation` and `test_flower_deployment`; here are its interface and its errors.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from smalltalk_fed.flower.client_app import app as client_app

# Flower sets these in the processes that it starts; messages are made with them.
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

CRASHED = Error(ErrorCode.CLIENT_APP_CRASHED, "the app died")
GONE = Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat")


class LinkLost(Exception):
    """What a ServerApp sees that is cut off from its SuperLink."""


@dataclass
class ThreadGrid(Grid):
    """`nodes`: node configs by Flower's id. `fault` may answer a message instead of its node.

    `fault(node, kind, number)` gets the message's kind and its number (0..) among those of this
    kind to this node; what it raises hits the ServerApp. `alter` changes what a node answers.
    """

    nodes: dict[int, dict[str, Any]]
    run_config: dict[str, Any]
    fault: Callable[[int, str, int], Error | None] = lambda node, kind, number: None
    alter: Callable[[int, str, RecordDict], RecordDict] = lambda node, kind, records: records
    sent: list[tuple[int, str, RecordDict]] = field(default_factory=list)
    received: list[tuple[int, str, RecordDict]] = field(default_factory=list)
    _replies: dict[str, Message] = field(default_factory=dict)
    _counts: dict[tuple[int, str], int] = field(default_factory=dict)
    _ids: Any = field(default_factory=lambda: itertools.count(1))
    _lock: Any = field(default_factory=threading.Lock)
    _threads: dict[int, ThreadPoolExecutor] = field(default_factory=dict)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        message_id = str(next(self._ids))
        message.metadata.__dict__["_message_id"] = message_id
        message.metadata.__dict__["_run_id"] = 1
        number = self._counts[node, kind] = self._counts.get((node, kind), -1) + 1
        self.sent.append((node, kind, message.content))
        error = self.fault(node, kind, number)
        if error is not None:
            self._settle(message_id, Message(error, reply_to=message))
        else:
            # One message at a time a node, as SuperNodes do it.
            thread = self._threads.setdefault(node, ThreadPoolExecutor(1))
            thread.submit(self._answer, message, message_id)
        return message_id

    def _answer(self, message: Message, message_id: str) -> None:
        node = message.metadata.dst_node_id
        context = Context(1, node, self.nodes.get(node, {}), RecordDict(), self.run_config)
        try:
            reply = client_app(message, context)
            reply.content = self.alter(node, message.metadata.message_type, reply.content)
            self.received.append((node, message.metadata.message_type, reply.content))
        except Exception as error:
            reply = Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message
            )
        self._settle(message_id, reply)

    def _settle(self, message_id: str, reply: Message) -> None:
        reply.metadata.__dict__["_reply_to_message_id"] = message_id
        with self._lock:
            self._replies[message_id] = reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        with self._lock:
            return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def close(self) -> None:
        for thread in self._threads.values():
            thread.shutdown()

    # What our ServerApp does not use.

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError


def node_config(folder: Path, name: str, corpus: Path) -> dict[str, Any]:
    """As a SuperNode's owner gives it."""
    return {"dir": str(folder / name), "corpus": str(corpus), "device": "cpu", "name": name}


def server_context(run_config: dict[str, Any]) -> Context:
    """What Flower hands to the ServerApp."""
    return Context(1, 1, {}, RecordDict(), run_config)
