"""A silo's answers are made once, kept, and counted, whatever happens in between."""

import pytest

from smalltalk_fed.errors import Refused, WorldError
from smalltalk_fed.train.releases import LEDGER_FILE, Releases, inputs_digest


class Maker:
    """Makes another answer each time, as noise does."""

    def __init__(self):
        self.made = 0

    def __call__(self):
        self.made += 1
        return {"router": b"answer %d" % self.made}


def opened(folder, limit=10):
    return Releases(folder, {"steps": limit})


def test_the_same_question_gets_the_same_answer_also_after_a_restart(tmp_path):
    make = Maker()
    first = opened(tmp_path).once("silo_block/0/1", "in", "steps", 4, make)
    again = opened(tmp_path)
    assert again.once("silo_block/0/1", "in", "steps", 4, make) == first == {"router": b"answer 1"}
    assert make.made == 1
    assert again.spent("steps") == 4


def test_another_question_is_another_answer_and_spends(tmp_path):
    make, releases = Maker(), opened(tmp_path)
    answers = {
        releases.once(unit, inputs, "steps", 3, make)["router"]
        for unit, inputs in [("a", "x"), ("a", "y"), ("b", "x")]
    }
    assert len(answers) == 3
    assert releases.spent("steps") == 9


def test_what_the_run_allows_is_the_end_of_it(tmp_path):
    make, releases = Maker(), opened(tmp_path)
    releases.once("a", "x", "steps", 8, make)
    with pytest.raises(Refused, match="8 of the 10 that the run's"):
        releases.once("b", "x", "steps", 3, make)
    assert make.made == 1
    assert releases.once("a", "x", "steps", 8, make) == {"router": b"answer 1"}
    assert releases.once("b", "x", "steps", 2, make) == {"router": b"answer 2"}
    with pytest.raises(Refused):
        releases.once("c", "x", "rows", 1, make)


def test_what_was_broken_off_costs_nothing(tmp_path):
    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path).once("a", "x", "steps", 8, broken)
    assert opened(tmp_path).spent("steps") == 0


def test_the_answer_is_on_disk_before_anybody_gets_it(tmp_path, monkeypatch):
    releases = opened(tmp_path)
    monkeypatch.setattr(
        "smalltalk_fed.train.releases.Releases._write",
        lambda self: (_ for _ in ()).throw(WorldError("the disk is full")),
    )
    with pytest.raises(WorldError):
        releases.once("a", "x", "steps", 8, Maker())


def test_a_damaged_ledger_stops_the_work(tmp_path):
    opened(tmp_path).once("a", "x", "steps", 8, Maker())
    path = tmp_path / LEDGER_FILE
    whole = path.read_bytes()
    for damage in (b"", b"[]", whole.replace(b'"amount": 8', b'"amount": 0.5'), whole[:-9]):
        path.write_bytes(damage)
        with pytest.raises(WorldError, match="nobody knows what this silo has given away"):
            opened(tmp_path)


def test_a_damaged_answer_is_not_made_anew(tmp_path):
    opened(tmp_path).once("a", "x", "steps", 8, Maker())
    (answer,) = tmp_path.glob("*.bin")
    answer.write_bytes(b"another")
    with pytest.raises(WorldError, match="damaged"):
        opened(tmp_path).once("a", "x", "steps", 8, Maker())
    answer.unlink()
    with pytest.raises(WorldError, match="can't be read"):
        opened(tmp_path).once("a", "x", "steps", 8, Maker())


def test_inputs_are_told_apart_by_name_and_bytes():
    assert inputs_digest({"a": b"1", "b": b"2"}) == inputs_digest({"b": b"2", "a": b"1"})
    different = [{"a": b"1", "b": b"2"}, {"a": b"2", "b": b"1"}, {"a": b"12"}, {"ab": b"12"}, {}]
    different += [{"a": b"1b2"}, {"ab": b"2"}, {"a": b"b2"}]
    assert len({inputs_digest(inputs) for inputs in different}) == len(different)
