"""Which nodes serve their experts now, and the prompts that wait for their answers.

Rules: soft state alone: a restart forgets it, nodes connect again, who asked asks again. A node
is asked only for experts that it may serve at that moment (the journal's word). A prompt goes to
the node with the fewest; each node has so many in hand as it offered, the others wait here, and
one more is refused. A node that answers late or leaves takes its prompts with it: whoever asked
is told, and asks again if it wants. Prompts and answers are kept nowhere, and never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace

from smalltalk_fed.errors import Forbidden, Malformed, Refused, SlowDown, WorldError
from smalltalk_fed.wire import limits
from smalltalk_fed.wire.convert_serving import Answer, Asked, Completion, Offer

May = Callable[[str], Collection[int]]  # node -> experts that it may answer with now
Named = Callable[[str], str]  # node -> its name


class NodeGone(WorldError):
    """A node that was asked gave no answer. Its own status: the coordinator is there."""

    hint = "ABORTED"


class Line:
    """One node's connection, as long as it serves."""

    def __init__(self, node_id: str, offer: Offer) -> None:
        self.node_id, self.experts = node_id, offer.experts
        self._free = asyncio.Semaphore(offer.at_once)
        self._queue: asyncio.Queue[Asked] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Answer]] = {}  # by number
        self._in_hand: set[int] = set()  # sent, and not answered; also if nobody waits any more
        self._numbers = 0
        self.closed = asyncio.Event()

    def __len__(self) -> int:
        """Prompts that wait for an answer."""
        return len(self._answers)

    def put(self, asked: Asked) -> tuple[int, asyncio.Future[Answer]]:
        """Let it wait its turn; returns its number and where its answer comes to."""
        self._numbers += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[self._numbers] = future
        self._queue.put_nowait(replace(asked, number=self._numbers))
        return self._numbers, future

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._answers.pop(number, None)

    async def next(self) -> Asked:
        """The next prompt that somebody still waits for, once the node has a hand free."""
        await self._free.acquire()
        try:
            while (asked := await self._queue.get()).number not in self._answers:
                pass
        except asyncio.CancelledError:
            self._free.release()
            raise
        self._in_hand.add(asked.number)
        return asked

    def answered(self, answer: Answer) -> None:
        """Take an answer in.

        Raises:
            Malformed: nobody asked for it.
        """
        if answer.number not in self._in_hand:
            raise Malformed(f"an answer to a prompt {answer.number} that was not asked")
        self._in_hand.discard(answer.number)
        self._free.release()
        future = self._answers.get(answer.number)
        if future is None or future.done():
            return
        if isinstance(answer, Completion) and answer.problem:
            what = f"node {self.node_id} could not answer: {answer.problem}"
            future.set_exception(NodeGone(what))
        else:
            future.set_result(answer)

    def close(self, why: NodeGone) -> None:
        """The connection ends; whoever waits is told."""
        self.closed.set()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(why)


class Relay:
    """Hands prompts to the nodes that serve. Use it inside one event loop."""

    def __init__(self, may: May, named: Named) -> None:
        self._may, self._named = may, named
        self._lines: dict[str, Line] = {}

    def open(self, node_id: str, offer: Offer) -> Line:
        """A node begins to serve; a line that it had before is closed.

        Raises:
            Forbidden: it offers an expert that is not its own.
        """
        wrong = sorted(set(offer.experts) - set(self._may(node_id)))
        if wrong:
            which = f"expert {wrong[0]}" if len(wrong) == 1 else f"experts {wrong}"
            raise Forbidden(
                f"{which} can't be served by node {node_id}: by the run's journal it did not train "
                "it, or it was withdrawn"
            )
        self.close(self._lines.get(node_id))
        line = self._lines[node_id] = Line(node_id, offer)
        return line

    def close(self, line: Line | None) -> None:
        """A node's connection is over."""
        if line is None:
            return
        if self._lines.get(line.node_id) is line:
            del self._lines[line.node_id]
        who = self._who(line.node_id)
        line.close(NodeGone(f"{who} went away before it had answered; ask again when it serves"))

    def serving(self) -> dict[int, list[str]]:
        """Nodes by the expert that they would answer with now."""
        found: dict[int, list[str]] = {}
        for line in self._lines.values():
            for expert in set(line.experts) & set(self._may(line.node_id)):
                found.setdefault(expert, []).append(line.node_id)
        return dict(sorted(found.items()))

    @property
    def waiting(self) -> int:
        """Prompts that wait for an answer."""
        return sum(map(len, self._lines.values()))

    async def ask(self, asked: Asked) -> tuple[str, str, Answer]:
        """The answer of a node that has the expert, behind that node's id and name.

        Raises:
            Refused: no node serves it now.
            SlowDown: too many prompts wait already.
            NodeGone: the node went away, was late, or could not answer.
        """
        line = self._least_busy(asked.expert)
        number, future = line.put(asked)
        try:
            async with asyncio.timeout(limits.ANSWER_S):
                answer = await future
        except TimeoutError:
            self.close(line)
            who = self._who(line.node_id)
            raise NodeGone(f"{who} did not answer within {limits.ANSWER_S:.0f} s") from None
        finally:
            line.forget(number)
        return line.node_id, self._named(line.node_id), answer

    def _least_busy(self, expert: int) -> Line:
        if self.waiting >= limits.PROMPTS_WAITING_IN_ALL_MAX:
            raise SlowDown(f"{limits.PROMPTS_WAITING_IN_ALL_MAX} prompts wait for nodes already")
        nodes = self.serving().get(expert, [])
        if not nodes:
            raise Refused(
                f"no node serves expert {expert} now; its owner does so with "
                "`smalltalk-node serve-experts`"
            )
        line = min((self._lines[node_id] for node_id in nodes), key=len)
        if len(line) >= limits.PROMPTS_WAITING_MAX:
            raise SlowDown(f"{len(line)} prompts wait for {self._who(line.node_id)} already")
        return line

    def _who(self, node_id: str) -> str:
        return f"node {node_id} ('{self._named(node_id)}')"
