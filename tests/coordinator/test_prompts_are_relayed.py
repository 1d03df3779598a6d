"""Prompts go to the node that has the expert, over its own line; whatever happens is one sentence.

Over real sockets, with nodes that speak as the tests like. No model: an answer is what a node says.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from smalltalk_coordinator.operator_client import OperatorClient
from support.deployment import wait_for
from support.owners import finish
from support.served_run import Guest, ServedRun

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import PeerError, Refused, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import convert_serving as serving
from smalltalk_fed.wire import limits
from smalltalk_fed.wire.certificates import key_from_pem
from smalltalk_fed.wire.convert_measuring import Losses, Measured, Text
from smalltalk_fed.wire.convert_serving import Answered, Completion, Offer, Prompt

SOON_S = 20.0


def prompt(expert: int, first: int = 1) -> Prompt:
    return Prompt(expert, (first, 2, 3), tokens_max=4, temperature=0.5, top_p=1.0, seed=9, end=0)


class Node:
    """A node that serves, and says what the test tells it to."""

    def __init__(self, run: ServedRun, guest: Guest, offer: Offer) -> None:
        self.guest, self._up = guest, queue.SimpleQueue[pb.ServeUp | None]()
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()  # prompts; at last why it ended
        self._stack = contextlib.ExitStack()
        channel = self._stack.enter_context(run.channel(guest))
        self._up.put(serving.offer_to_proto(offer))
        self._call = pb_grpc.RunStub(channel).Serve(iter(self._up.get, None))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for message in self._call:
                self.heard.put(serving.serve_down_from_proto(message))
            self.heard.put(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            self.heard.put(error)

    def next(self) -> Any:
        return self.heard.get(timeout=SOON_S)

    def prompt(self) -> Prompt:
        found = self.next()
        assert isinstance(found, Prompt), found
        return found

    def refused(self) -> tuple[str, str]:
        error = self.next()
        assert isinstance(error, grpc.RpcError), error
        return error.code().name, error.details() or ""

    def say(self, message: pb.ServeUp | None) -> None:
        self._up.put(message)

    def answer(self, said: Prompt, *tokens: int) -> None:
        self.say(serving.answer_up(Completion(said.number, tokens)))

    def leave(self) -> None:
        self._call.cancel()
        self._up.put(None)
        self._stack.close()


@pytest.fixture
def owners(served: ServedRun) -> list[Guest]:
    """Two nodes of a finished run: the first trained expert 0, the second expert 1."""
    guests = [served.enrol(name) for name in ("anna", "berta")]
    finish(served, [guest.node_id for guest in guests])
    return guests


@pytest.fixture
def serve(served: ServedRun) -> Iterator[Callable[..., Node]]:
    """Begin to serve, and wait until the offer is taken."""
    nodes: list[Node] = []

    def begin(guest: Guest, *experts: int, at_once: int = 1) -> Node:
        node = Node(served, guest, Offer(experts, at_once))
        nodes.append(node)
        assert node.next() == "prompts follow"
        return node

    yield begin
    for node in nodes:
        node.leave()


@pytest.fixture
def asking(served: ServedRun) -> Iterator[Callable[[Prompt], Future[Answered]]]:
    """Ask as the operator does; several at a time."""
    # The client first: what is still asked ends with it.
    with ThreadPoolExecutor(8) as threads, OperatorClient(served.folder) as client:
        yield lambda asked: threads.submit(client.generate, asked)


Serve, Ask = Callable[..., Node], Callable[[Prompt], "Future[Answered]"]


def status(run: ServedRun) -> dict[str, Any]:
    with OperatorClient(run.folder) as client:
        return client.status()


def operator(run: ServedRun) -> Guest:
    place = run.folder.path / "operator"
    key = key_from_pem((place / "key.pem").read_bytes(), "key.pem")
    return Guest("operator", key, (place / "cert.pem").read_bytes())


def test_the_node_that_has_the_expert_answers(
    owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    nodes = [serve(guest, expert) for expert, guest in enumerate(owners)]
    for expert in (1, 0):
        answer = asking(prompt(expert))
        said = nodes[expert].prompt()
        assert (said.expert, said.tokens, said.seed, said.end) == (expert, (1, 2, 3), 9, 0)
        assert (said.tokens_max, said.temperature, said.top_p) == (4, 0.5, 1.0)
        nodes[expert].answer(said, 7, 8)
        name = ("anna", "berta")[expert]
        assert answer.result(SOON_S) == Answered(owners[expert].node_id, name, (7, 8))


def test_status_says_who_answers_and_what_waits(
    served: ServedRun, owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    node = serve(owners[1], 1)
    assert status(served)["serving_experts"] == {"1": [owners[1].node_id]}
    asking(prompt(1))
    node.prompt()
    assert status(served)["prompts_waiting"] == 1
    node.leave()
    wait_for(lambda: status(served)["serving_experts"] == {}, "the node to be gone")


@pytest.mark.parametrize("experts", [(1,), (0, 1)])
def test_a_node_that_offers_an_expert_not_its_own_is_refused(
    served: ServedRun, owners: list[Guest], experts: tuple[int, ...]
) -> None:
    node = Node(served, owners[0], Offer(experts))
    code, says = node.refused()
    assert code == "PERMISSION_DENIED"
    assert f"expert 1 can't be served by node {owners[0].node_id}" in says
    assert "did not train it" in says
    node.leave()


def test_where_nobody_serves_an_expert_the_owner_is_told_how(
    owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    serve(owners[0], 0)
    with pytest.raises(Refused, match=r"no node serves expert 1 now; .*serve-experts"):
        asking(prompt(1)).result(SOON_S)


def test_a_node_that_vanishes_before_it_answered_is_a_clear_error(
    served: ServedRun, owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    node = serve(owners[0], 0)
    answers = [asking(prompt(0)), asking(prompt(0))]  # one in hand, one that waits
    node.prompt()
    wait_for(lambda: status(served)["prompts_waiting"] == 2, "both to wait")
    node.leave()
    who = f"node {owners[0].node_id} ('anna')"
    for answer in answers:
        with pytest.raises(WorldError) as caught:
            answer.result(SOON_S)
        says = f"{who} went away before it had answered; ask again when it serves"
        assert str(caught.value) == says


def test_a_node_that_is_late_is_not_asked_any_more(
    owners: list[Guest], serve: Serve, asking: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ANSWER_S", 0.3)
    node = serve(owners[0], 0)
    with pytest.raises(WorldError, match=r"\('anna'\) did not answer within 0 s"):
        asking(prompt(0)).result(SOON_S)
    node.prompt()
    assert node.next() == grpc.StatusCode.OK  # its line is closed
    with pytest.raises(Refused, match="no node serves expert 0"):
        asking(prompt(0)).result(SOON_S)


def test_a_node_that_can_not_answer_says_why_and_goes_on(
    owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    node = serve(owners[0], 0)
    first = asking(prompt(0))
    said = node.prompt()
    node.say(serving.answer_up(Completion(said.number, problem="no memory")))
    with pytest.raises(WorldError, match=r"could not answer: no memory"):
        first.result(SOON_S)
    second = asking(prompt(0))
    node.answer(node.prompt(), 5)
    assert second.result(SOON_S).tokens == (5,)


def test_an_answer_longer_than_asked_for_does_not_count(
    owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    node = serve(owners[0], 0)
    answer = asking(prompt(0))
    node.answer(node.prompt(), 1, 2, 3, 4, 5)
    with pytest.raises(WorldError, match="something else than was asked for"):
        answer.result(SOON_S)


def test_a_text_is_measured_where_the_expert_is(
    served: ServedRun, owners: list[Guest], serve: Serve
) -> None:
    node, text = serve(owners[0], 0), Text(0, (1, 2, 3, 4, 5, 6), 3, 2)
    with ThreadPoolExecutor(1) as threads, OperatorClient(served.folder) as client:
        measured = threads.submit(client.measure, text)
        said = node.next()
        assert said == replace(text, number=1)
        node.say(serving.answer_up(Losses(1, 3.5, 4.5)))
        assert measured.result(SOON_S) == Measured(owners[0].node_id, "anna", 3.5, 4.5)
        measured = threads.submit(client.measure, text)
        node.answer(node.next(), 1, 2)
        with pytest.raises(WorldError, match="something else than was asked for"):
            measured.result(SOON_S)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (serving.answer_up(Completion(7, (1,))), "a prompt 7 that was not asked"),
        (serving.offer_to_proto(Offer((0,))), "a second offer"),
        (pb.ServeUp(), "neither an offer nor an answer"),
    ],
)
def test_what_was_not_asked_for_ends_the_line(
    owners: list[Guest], serve: Serve, said: pb.ServeUp, says: str
) -> None:
    node = serve(owners[0], 0)
    node.say(said)
    code, why = node.refused()
    assert code == "INVALID_ARGUMENT"
    assert says in why


def test_the_first_word_must_be_an_offer(served: ServedRun, owners: list[Guest]) -> None:
    answer = serving.answer_up(Completion(1, (1,)))
    with served.channel(owners[0]) as channel, pytest.raises(grpc.RpcError) as refused:
        list(pb_grpc.RunStub(channel).Serve(iter([answer]), timeout=SOON_S))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_node_has_as_many_in_hand_as_it_offered(
    served: ServedRun, owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    node = serve(owners[0], 0, at_once=2)
    answers = []
    for first in range(3):
        answers.append(asking(prompt(0, first)))
        wait_for(lambda: status(served)["prompts_waiting"] == len(answers), "it to wait")
    in_hand = [node.prompt(), node.prompt()]
    assert [said.tokens[0] for said in in_hand] == [0, 1]
    assert node.heard.empty()
    node.answer(in_hand[1], 11)
    third = node.prompt()
    assert third.tokens[0] == 2
    node.answer(third, 12)
    node.answer(in_hand[0], 10)
    assert [each.result(SOON_S).tokens for each in answers] == [(10,), (11,), (12,)]


def test_more_prompts_than_may_wait_are_refused_at_once(
    served: ServedRun,
    owners: list[Guest],
    serve: Serve,
    asking: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PROMPTS_WAITING_MAX", 1)
    node = serve(owners[0], 0)
    first = asking(prompt(0))
    said = node.prompt()
    with pytest.raises(PeerError, match="1 prompts wait for node"):
        asking(prompt(0)).result(SOON_S)
    node.answer(said, 5)
    assert first.result(SOON_S).tokens == (5,)


def test_a_prompt_that_nobody_waits_for_any_more_is_not_passed_on(
    served: ServedRun, owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    node = serve(owners[0], 0)
    first = asking(prompt(0, 1))
    said = node.prompt()
    with served.channel(operator(served)) as channel:
        given_up = pb_grpc.AdminStub(channel).Generate.future(serving.prompt_to_proto(prompt(0, 2)))
        wait_for(lambda: status(served)["prompts_waiting"] == 2, "it to wait")
        given_up.cancel()
        wait_for(lambda: status(served)["prompts_waiting"] == 1, "it to be given up")
    third = asking(prompt(0, 3))
    node.answer(said, 5)
    assert first.result(SOON_S).tokens == (5,)
    said = node.prompt()
    assert said.tokens[0] == 3
    node.answer(said, 6)
    assert third.result(SOON_S).tokens == (6,)


def test_a_new_line_of_a_node_takes_the_old_ones_place(
    owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    old, new = serve(owners[0], 0), serve(owners[0], 0)
    assert old.next() is not None  # it ended
    answer = asking(prompt(0))
    new.answer(new.prompt(), 5)
    assert answer.result(SOON_S).tokens == (5,)


def test_a_node_that_was_shut_out_is_gone_without_a_word_of_its_own(
    served: ServedRun,
    owners: list[Guest],
    serve: Serve,
    asking: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SERVING_LOOK_S", 0.05)
    node = serve(owners[0], 0)
    served.ask(msg.Revoke(owners[0].node_id, "it lies"))
    code, says = node.refused()
    assert (code, says) == (
        "PERMISSION_DENIED",
        f"node {owners[0].node_id} was shut out: it lies",
    )
    with pytest.raises(Refused, match="no node serves expert 0"):
        asking(prompt(0)).result(SOON_S)


def test_a_withdrawn_expert_answers_no_more_and_others_do(
    served: ServedRun, owners: list[Guest], serve: Serve, asking: Ask
) -> None:
    nodes = [serve(guest, expert) for expert, guest in enumerate(owners)]
    with served.channel(owners[0]) as channel:
        reply = pb_grpc.RunStub(channel).Withdraw(
            pb.WithdrawRequest(experts=[0], reason="ours again"), timeout=SOON_S
        )
    assert reply.reason == "expert 0 left the mixture"
    with pytest.raises(Refused, match="no node serves expert 0"):
        asking(prompt(0)).result(SOON_S)
    answer = asking(prompt(1))
    nodes[1].answer(nodes[1].prompt(), 5)
    assert answer.result(SOON_S).tokens == (5,)
    (gone,) = status(served)["withdrawn"]
    assert (gone["expert"], gone["by"], gone["reason"]) == (0, "owner", "ours again")


def test_nobody_withdraws_anothers_expert(served: ServedRun, owners: list[Guest]) -> None:
    with served.channel(owners[0]) as channel, pytest.raises(grpc.RpcError) as refused:
        pb_grpc.RunStub(channel).Withdraw(pb.WithdrawRequest(experts=[1]), timeout=SOON_S)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"expert 1 is node {owners[1].node_id}'s" in (refused.value.details() or "")
    assert status(served)["withdrawn"] == []
