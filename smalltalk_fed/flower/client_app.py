"""The ClientApp: Flower's messages in, `node_turn` at work, Flower's messages out.

Rules: what a node can't do is an answer with the reason, never an exception: Flower would only
say that the app crashed. The context is left as it is; what lasts is in the node's folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.flower.arrival import introduce
from smalltalk_fed.flower.node_turn import take_turn
from smalltalk_fed.flower.settings import NodeSettings
from smalltalk_fed.flower.turns import Order, Question, refusal
from smalltalk_fed.telemetry import logs

log = logging.getLogger("smalltalk.node")

app = ClientApp()


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this node is."""

    def act(settings: NodeSettings) -> RecordDict:
        question = Question.from_records(message.content)
        return introduce(settings, question, time.time()).to_records()

    return _answered(message, context, act)


@app.train()
def train(message: Message, context: Context) -> Message:
    """A turn of a unit that trains, scores or divides."""
    return _answered(message, context, lambda settings: _turn(message, settings))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """A turn of a unit that evaluates an expert, or a silo's experts on its own text."""
    return _answered(message, context, lambda settings: _turn(message, settings))


@app.query("end")
def end(message: Message, context: Context) -> Message:
    """The run is over: its checkpoints are not needed any more."""
    return _answered(message, context, lambda settings: _turn(message, settings))


@app.query("knock")
def knock(message: Message, context: Context) -> Message:
    """Nothing is asked: an answer that lies here goes out with this one (see `post`)."""
    return Message(RecordDict(), reply_to=message)


def _turn(message: Message, settings: NodeSettings) -> RecordDict:
    return take_turn(settings, Order.from_records(message.content)).to_records()


def _answered(
    message: Message, context: Context, act: Callable[[NodeSettings], RecordDict]
) -> Message:
    logs.set_up()
    try:
        records = act(NodeSettings.of(context.node_config, context.run_config))
    except SmalltalkError as error:
        records = refusal(str(error))
    except Exception as error:
        # Flower would send its words to the ServerApp, and they may be those of a silo's text.
        log.exception("this node can't answer")
        records = refusal(f"{type(error).__name__}; its words are in this node's log")
    return Message(records, reply_to=message)
