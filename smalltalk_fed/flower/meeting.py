"""How the ServerApp comes to know a Flower node: a question, an answer with proof, its enrolment.

Rules: the question says what the run is, so that a node knows it before it says anything of its
text, and has a challenge, which the node signs with the key that it will sign its results with. A
silo that lacks the run's tokenizer says so and is asked again, with it.
"""

from __future__ import annotations

import hashlib
import logging
import secrets

from google.protobuf.message import DecodeError

from smalltalk_fed.core.admission import node_id_of
from smalltalk_fed.core.session import Session
from smalltalk_fed.errors import Malformed, Refused
from smalltalk_fed.flower.counter import Counter
from smalltalk_fed.flower.post import Post
from smalltalk_fed.flower.turns import JOIN, Introduction, Question, refused
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.signing import verify_presence

log = logging.getLogger("smalltalk.flower")


async def meet(flower_node: int, post: Post, counter: Counter) -> tuple[Session, bytes]:
    """A new process of a node: its session, and the JoinReply that goes with all its orders.

    Raises:
        NoAnswer, NoLink: it can't be asked.
        PeerError: it can't take part, or can't prove who it is.
        WorldError: the coordinator can't answer.
    """
    question, answer = await _ask(flower_node, post, counter)
    try:
        request = pb.JoinRequest.FromString(answer.join)
    except DecodeError as error:
        raise Malformed(f"a node's presence can't be read ({error})") from None
    verify_presence(request.signing_key, question.challenge, answer.join, answer.proof)
    key_sha256 = hashlib.sha256(request.signing_key).hexdigest()
    join = convert.join_from_proto(node_id_of(key_sha256), request)
    welcome = await counter.welcome(join, key_sha256, answer.name)
    counter.count(join.node_id, "join", "up", len(answer.join))
    counter.count(join.node_id, "join", "down", len(question.welcome))
    for data in question.blobs.values():
        counter.count(join.node_id, "tokenizer", "down", len(data))
    log.info("node %d of Flower's is %s (%s)", flower_node, join.node_id, answer.name)
    session = Session(join.node_id, join.incarnation)
    return session, convert.welcome_to_proto(welcome).SerializeToString()


async def _ask(flower_node: int, post: Post, counter: Counter) -> tuple[Question, Introduction]:
    """The question that was answered, and the answer."""
    blobs: dict[str, bytes] = {}
    while True:
        question = Question(secrets.token_bytes(32), counter.invitation(), blobs)
        records = await post.ask(flower_node, JOIN, question.to_records())
        if why := refused(records):
            raise Refused(why)
        answer = Introduction.from_records(records)
        if not answer.missing:
            return question, answer
        if blobs:
            raise Refused("it lacks the run's tokenizer, which it was sent")
        blobs = counter.tokenizer(answer.missing)
