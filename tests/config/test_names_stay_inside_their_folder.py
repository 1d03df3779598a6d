"""A name out of a file or a message is a plain file below its folder, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from smalltalk_fed.config.inside import below, only_plain, plain
from smalltalk_fed.errors import DataError, UserError

LEAVING = (
    "", ".", "..", "/", "/etc/passwd", "../secret", "a/../../secret", "a/..", "a//b", "a/./b", "a/",
    "..\\secret", "a\\b", "C:secret", "C:/secret", "a\0b", "~/../x/..", "\\\\server\\share",
)  # fmt: skip


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("path_of", [below, plain])
def test_names_that_could_leave_are_refused(path_of: type, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no file inside") as caught:
        path_of(tmp_path, name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "a/b", ".hidden", "..a", "a..", "tokenizer/tokenizer.json"])
def test_plain_names_are_below_the_folder(name: str, tmp_path: Path) -> None:
    assert below(tmp_path, name) == plain(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("linked", ["a", "a/b", "a/b/c"])
def test_a_symbolic_link_on_the_way_is_refused_wherever_it_points(
    linked: str, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    target = folder / linked
    target.parent.mkdir(parents=True)
    for there in (outside, folder, tmp_path / "nowhere"):
        target.symlink_to(there)
        with pytest.raises(UserError, match="symbolic link"):
            plain(folder, "a/b/c")
        assert below(folder, "a/b/c") == folder / "a/b/c"  # which does not look
        target.unlink()


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert plain(tmp_path / "link", "a") == tmp_path / "link" / "a"


def test_a_folder_of_plain_files_has_nothing_else_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    only_plain(tmp_path)
    (tmp_path / "a" / "b" / "link").symlink_to("file")
    with pytest.raises(DataError, match="not a plain file"):
        only_plain(tmp_path)


def test_the_caller_says_which_error_it_is(tmp_path: Path) -> None:
    class OddError(UserError):
        pass

    with pytest.raises(OddError):
        plain(tmp_path, "../x", OddError)
