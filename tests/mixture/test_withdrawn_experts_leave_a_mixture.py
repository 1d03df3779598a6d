"""A withdrawn expert's weights and router leave a mixture's folder; the rest is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.plain_mixture import manifest, write_folder

from smalltalk_fed.errors import WorldError
from smalltalk_fed.mixture.package import (
    MixtureError,
    known_experts,
    present_experts,
    read_mixture,
    verify_experts,
)
from smalltalk_fed.mixture.withdrawing import take_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def remove_weights(folder: Path) -> None:
    for path in folder.glob("experts/*/model.safetensors"):
        path.unlink()


def edit(folder: Path, kind: str, index: int, **changes: object) -> None:
    path = folder / "mixture.json"
    table = json.loads(path.read_text())
    table[kind][index] |= changes
    path.write_text(json.dumps(table))


def test_weights_and_router_are_gone_and_everything_else_is_as_it_was(folder: Path) -> None:
    before = files(folder)
    take_out(folder, {1: "ours again"})
    assert before - files(folder) == {"experts/1/model.safetensors", "routers/1.safetensors"}
    after, was = read_mixture(folder), manifest()
    assert after.experts[1].withdrawn == "ours again"
    assert (after.experts[1].sha256, after.routers[1].sha256) == ("", "")
    assert after.prices == was.prices
    for index in (0, 2):
        assert after.experts[index] == was.experts[index]
        assert after.routers[index] == was.routers[index]
    assert present_experts(folder, after) == known_experts(after) == [0, 2]
    verify_experts(folder, after)


def test_done_again_it_changes_nothing_and_ends_what_was_cut_off(folder: Path) -> None:
    take_out(folder, {1: "ours again"})
    said = (folder / "mixture.json").read_bytes()
    (folder / "experts/1").mkdir()
    (folder / "experts/1/model.safetensors").write_bytes(b"left behind")
    take_out(folder, {1: "another reason"})
    assert (folder / "mixture.json").read_bytes() == said
    assert not (folder / "experts/1").exists()


def test_the_entry_comes_first_so_that_a_reader_in_between_asks_for_nothing_that_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(path: Path) -> None:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr("shutil.rmtree", cut_off)
    with pytest.raises(WorldError, match=r"experts/1 was withdrawn and can't be removed"):
        take_out(folder, {1: "ours again"})
    assert present_experts(folder, read_mixture(folder)) == [0, 2]


def test_files_that_came_back_are_not_used(folder: Path) -> None:
    take_out(folder, {1: "ours again"})
    (folder / "experts/1").mkdir()
    (folder / "experts/1/model.safetensors").write_bytes(b"weights of expert 1")
    assert present_experts(folder, read_mixture(folder)) == [0, 2]


def test_when_all_have_left_nothing_can_be_read(folder: Path) -> None:
    take_out(folder, dict.fromkeys(range(3), "ours again"))
    for elsewhere in (False, True):
        with pytest.raises(MixtureError, match="were withdrawn by their owners"):
            read_mixture(folder, elsewhere=elsewhere)


def test_an_expert_that_there_is_not_and_a_link_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match="no expert 3"):
        take_out(folder, {3: "ours again"})
    outside = tmp_path.parent / "outside.safetensors"
    (folder / "routers/1.safetensors").rename(outside)
    (folder / "routers/1.safetensors").symlink_to(outside)
    with pytest.raises(MixtureError, match="symbolic link"):
        take_out(folder, {1: "ours again"})
    assert outside.exists()


def test_experts_that_stayed_home_can_be_asked_there(folder: Path) -> None:
    remove_weights(folder)
    with pytest.raises(MixtureError, match="generate --federated"):
        read_mixture(folder)
    assert known_experts(read_mixture(folder, elsewhere=True)) == [0, 1, 2]
    edit(folder, "experts", 0, enabled=False)
    assert known_experts(read_mixture(folder, elsewhere=True)) == [1, 2]


def test_who_may_have_the_weights_is_recorded(folder: Path) -> None:
    assert {entry.share for entry in read_mixture(folder).experts} == {"operator"}
    edit(folder, "experts", 0, share="public")
    assert read_mixture(folder).experts[0].share == "public"
    edit(folder, "experts", 0, share="everybody")
    with pytest.raises(MixtureError, match=r"experts\.0\.share"):
        read_mixture(folder)


def test_a_mixture_of_before_is_read(folder: Path) -> None:
    path = folder / "mixture.json"
    table = json.loads(path.read_text())
    for entry in table["experts"]:
        del entry["share"], entry["withdrawn"]
    path.write_text(json.dumps(table))
    assert read_mixture(folder) == manifest()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("routers", {"sha256": ""}), ("experts", {"withdrawn": "ours again"})],
)
def test_a_router_without_its_withdrawal_or_the_reverse_is_refused(
    folder: Path, kind: str, changes: dict[str, object]
) -> None:
    edit(folder, kind, 1, **changes)
    with pytest.raises(MixtureError, match="router 1 must have a digest"):
        read_mixture(folder)
