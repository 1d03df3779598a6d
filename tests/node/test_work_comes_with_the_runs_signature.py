"""A node does what its run's coordinator signed for it, and nothing else.

That it does do what is signed is seen in every test of the conversation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.node_stage import KEY, STOP, Stage, ids

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit
from smalltalk_fed.errors import Unauthenticated
from smalltalk_fed.wire.signing import SigningKey, sign_unit

Sign = Callable[[msg.Exchange, Unit], bytes]


def signed(run: str, node: str, more: int, key: SigningKey = KEY) -> Sign:
    """Signs for this run and node, and a process that is `more` younger."""
    return lambda said, unit: sign_unit(key, run, node, said.incarnation + more, unit)


@pytest.mark.parametrize(
    "sign",
    [
        lambda said, unit: b"",
        lambda said, unit: bytes(64),
        signed("run-1", "n-1", 0, SigningKey.create()),
        signed("another", "n-1", 0),
        signed("run-1", "n-2", 0),
        signed("run-1", "n-1", 1),
    ],
    ids=["none", "zeros", "another key", "another run", "another node", "another process"],
)
def test_work_without_it_ends_the_node_before_anything_is_done(stage: Stage, sign: Sign) -> None:
    unit = stage.unit("router_round/0/1", share=ids())
    stage.script(msg.Order("do this", unit=unit), *[STOP] * 9)
    stage.loopback.behaviour.sign = sign
    program = stage.program()
    with pytest.raises(Unauthenticated, match="the assignment of router_round/0/1 is not signed"):
        program.run()
    assert not list((stage.folder.path / "work").rglob("*"))
    assert stage.loopback.ledger.table() == [
        row for row in stage.loopback.ledger.table() if row.kind in ("join", "exchange")
    ]


def test_what_is_no_work_needs_none(stage: Stage) -> None:
    stage.script(msg.Order("nothing to do yet"), STOP)
    stage.loopback.behaviour.sign = lambda said, unit: b""
    assert stage.program().run() == STOP.reason
