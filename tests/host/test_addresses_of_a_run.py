"""addresses.json: pairs, what was written before there were pairs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smalltalk_fed.errors import UserError
from smalltalk_fed.host.addresses import Addresses, read_pair, show_pair

ONE = Addresses("a.example.org:1", "a.example.org:2")
TWO = Addresses("a.example.org:1", "a.example.org:2", (("[::1]:1", "[::1]:2"),))


@pytest.mark.parametrize("addresses", [ONE, TWO])
def test_they_survive_the_disk(tmp_path: Path, addresses: Addresses) -> None:
    addresses.save(tmp_path / "addresses.json")
    assert Addresses.load(tmp_path / "addresses.json") == addresses


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    path.write_text('{"run": "a.example.org:1", "enrolment": "a.example.org:2"}')
    assert Addresses.load(path) == ONE


def test_a_text_is_as_good_as_a_list_of_one(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    path.write_text('{"run": ["a.example.org:1"], "enrolment": "a.example.org:2"}')
    assert Addresses.load(path) == ONE


def test_a_pair_is_added_at_the_end_and_the_next_one_is_first_when_the_first_goes() -> None:
    assert ONE.with_pair(("[::1]:1", "[::1]:2")) == TWO
    assert TWO.without_pair(ONE.pairs[0]) == Addresses("[::1]:1", "[::1]:2")
    assert TWO.runs == ("a.example.org:1", "[::1]:1")
    assert TWO.enrolments == ("a.example.org:2", "[::1]:2")
    assert TWO.hosts == ("::1", "a.example.org")


def test_a_pair_is_written_as_it_is_read() -> None:
    for pair in TWO.pairs:
        assert read_pair(show_pair(pair)) == pair


@pytest.mark.parametrize(
    ("text", "says"),
    [("a:1", "HOST:PORT/HOST:PORT"), ("a:1/b", "'b' is not an address"), ("/", "'' is not")],
)
def test_what_is_no_pair_is_said(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_pair(text)


@pytest.mark.parametrize(
    ("runs", "enrolments", "says"),
    [
        (["a:1"], [], "as many of the one"),
        ([], [], "as many of the one"),
        (["a:1"], ["a:1"], "a:1 is there twice"),
        (["a:1", "a:1"], ["a:2", "a:3"], "a:1 is there twice"),
        (["a:1", "b:1"], ["a:2", "a:2"], "a:2 is there twice"),
        (["a"], ["a:2"], "'a' is not an address"),
        ([f"a:{n}" for n in range(1, 50)], [f"b:{n}" for n in range(1, 50)], "at most"),
    ],
)
def test_what_can_t_be_is_refused(runs: list[str], enrolments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Addresses.of(runs, enrolments)


def test_the_last_pair_stays_and_a_strange_one_is_not_removed() -> None:
    with pytest.raises(UserError, match="the only address"):
        ONE.without_pair(ONE.pairs[0])
    with pytest.raises(UserError, match="is not an address of this run"):
        ONE.without_pair(("x:1", "x:2"))


@pytest.mark.parametrize(
    "value", [[], {}, {"run": 1, "enrolment": 2}, {"run": [], "enrolment": []},
              {"run": ["a:1"], "enrolment": None}, {"run": [1], "enrolment": [2]}]
)  # fmt: skip
def test_a_damaged_file_is_an_error(tmp_path: Path, value: object) -> None:
    path = tmp_path / "addresses.json"
    path.write_text(json.dumps(value))
    with pytest.raises((ValueError, UserError)):
        Addresses.load(path)
