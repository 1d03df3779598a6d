"""How many connections are let in: as many as the process may open files, up to the caps."""

from __future__ import annotations

import resource

import pytest
from smalltalk_coordinator import ports
from smalltalk_coordinator.ports import connection_caps, newcomer_options, node_options

from smalltalk_fed.errors import WorldError
from smalltalk_fed.wire import limits

ALL = limits.CONNECTIONS_MAX + limits.NEWCOMERS_MAX + ports.OTHER_FILES


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The soft and hard limit of open files, which `connection_caps` may change."""
    kept = {"files": (1024, ALL)}
    monkeypatch.setattr(ports.resource, "getrlimit", lambda kind: kept["files"])
    monkeypatch.setattr(
        ports.resource, "setrlimit", lambda kind, pair: kept.__setitem__("files", pair)
    )
    return kept


@pytest.mark.parametrize("hard", [ALL, 10 * ALL, resource.RLIM_INFINITY])
def test_the_soft_limit_is_raised_as_far_as_it_is_needed(
    allowed: dict[str, tuple[int, int]], hard: int, caplog: pytest.LogCaptureFixture
) -> None:
    allowed["files"] = (1024, hard)
    assert connection_caps() == (limits.CONNECTIONS_MAX, limits.NEWCOMERS_MAX)
    assert allowed["files"] == (ALL, hard)
    assert not caplog.records


def test_fewer_files_are_fewer_connections_and_a_warning(
    allowed: dict[str, tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    allowed["files"] = (256, 1024)
    nodes, newcomers = connection_caps()
    assert allowed["files"] == (1024, 1024)
    assert nodes + newcomers + ports.OTHER_FILES == 1024
    assert newcomers > 100
    assert f"at most {nodes} nodes are connected at a time" in caplog.text


def test_pairs_of_ports_share_the_files(allowed: dict[str, tuple[int, int]]) -> None:
    allowed["files"] = (256, ALL)
    nodes, newcomers = connection_caps(2)
    assert 2 * (nodes + newcomers) + ports.OTHER_FILES == ALL
    allowed["files"] = (256, 10 * ALL)
    assert connection_caps(2) == (limits.CONNECTIONS_MAX, limits.NEWCOMERS_MAX)
    assert allowed["files"] == (2 * ALL - ports.OTHER_FILES, 10 * ALL)


def test_too_few_files_to_serve_at_all_are_one_sentence(
    allowed: dict[str, tuple[int, int]],
) -> None:
    allowed["files"] = (256, 511)
    with pytest.raises(WorldError, match="may open 511 files, a coordinator needs 512"):
        connection_caps()


def test_both_ports_have_the_caps_that_the_table_says() -> None:
    nodes, newcomers = dict(node_options(7)), dict(newcomer_options(5))
    assert nodes["grpc.max_allowed_incoming_connections"] == 7
    assert newcomers["grpc.max_allowed_incoming_connections"] == 5
    for options in (nodes, newcomers):
        assert options["grpc.server_handshake_timeout_ms"] == 1000 * limits.HANDSHAKE_S
        assert options["grpc.max_receive_message_length"] == limits.MESSAGE_BYTES_MAX
    assert "grpc.max_connection_age_ms" not in nodes
