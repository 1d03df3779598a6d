"""A mixture's folder: read back as written, and refused when it isn't what it says."""

import json

import pytest
from support.plain_mixture import manifest, write_folder

from smalltalk_fed.errors import UserError, WorldError
from smalltalk_fed.mixture.package import (
    MixtureError,
    present_experts,
    read_mixture,
    verify_experts,
    write_mixture_manifest,
)


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def change(folder, **changes):
    path = folder / "mixture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def entries(folder, name):
    return json.loads((folder / "mixture.json").read_text())[name]


def test_it_reads_back_as_written(folder):
    assert read_mixture(folder) == manifest()
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["mixture.json"]


def test_writing_again_replaces_it(folder):
    write_mixture_manifest(folder, manifest().model_copy(update={"run_id": "other"}))
    assert read_mixture(folder).run_id == "other"


def test_a_disk_that_refuses_leaves_the_old_manifest(folder):
    (folder / ".mixture.json.part").mkdir()
    with pytest.raises(WorldError, match="can't be written"):
        write_mixture_manifest(folder, manifest().model_copy(update={"run_id": "other"}))
    assert read_mixture(folder).run_id == "run"


def test_experts_may_be_missing_or_disabled(folder):
    (folder / "experts/0/model.safetensors").unlink()
    changed = entries(folder, "experts")
    changed[1]["enabled"] = False
    change(folder, experts=changed)
    assert present_experts(folder, read_mixture(folder)) == [2]


def test_without_any_expert_it_is_refused(folder):
    for e in range(3):
        (folder / f"experts/{e}/model.safetensors").unlink()
    with pytest.raises(MixtureError, match="no expert's weights"):
        read_mixture(folder)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "routers/1.safetensors"])
def test_another_tokenizer_or_router_is_refused(folder, name):
    (folder / name).write_bytes(b"another")
    with pytest.raises(MixtureError, match="not the one that this mixture was made with"):
        read_mixture(folder)
    (folder / name).unlink()
    with pytest.raises(MixtureError, match="can't be read"):
        read_mixture(folder)


def test_another_expert_is_found_on_request(folder):
    verify_experts(folder, read_mixture(folder))
    (folder / "experts/2/model.safetensors").write_bytes(b"another")
    with pytest.raises(MixtureError, match=r"expert 2 .* is not the one"):
        verify_experts(folder, read_mixture(folder))


@pytest.mark.parametrize(
    "name",
    ["mixture.json", "tokenizer", "routers", "routers/0.safetensors", "experts/1"],
)
def test_symbolic_links_are_refused(folder, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / "target"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(MixtureError, match="symbolic link"):
        read_mixture(folder)


@pytest.mark.parametrize("file", ["../secret", "routers/../x", "/etc/x", "routers/a/b", "x"])
def test_paths_that_leave_the_folder_are_refused(folder, file):
    changed = entries(folder, "routers")
    changed[0]["file"] = file
    change(folder, routers=changed)
    with pytest.raises(MixtureError, match=r"routers\.0\.file"):
        read_mixture(folder)
    change(folder, routers=manifest().model_dump(mode="json")["routers"])
    changed = entries(folder, "experts")
    changed[0]["folder"] = file
    change(folder, experts=changed)
    with pytest.raises(MixtureError, match=r"experts\.0\.folder"):
        read_mixture(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"prices": [0.0]}, "1 prices"),
        ({"prices": [0.0, 0.0, float("nan")]}, "finite"),
        ({"prefix_tokens": 300}, "prefix of 300 tokens is longer"),
        ({"experts": []}, "experts"),
        ({"run": "by code"}, "run"),
        ({"tokenizer_sha256": "abc"}, "tokenizer_sha256"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(folder, changes, says):
    change(folder, **changes)
    with pytest.raises(MixtureError, match=says) as caught:
        read_mixture(folder)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_manifest_is_refused(folder, data):
    (folder / "mixture.json").write_bytes(data)
    with pytest.raises(MixtureError, match=r"mixture\.json"):
        read_mixture(folder)


def test_a_folder_without_a_manifest_is_no_mixture(tmp_path):
    with pytest.raises(MixtureError, match="is not a mixture"):
        read_mixture(tmp_path)
    with pytest.raises(MixtureError, match="is not a mixture"):
        read_mixture(tmp_path / "nowhere")


def test_a_manifest_too_large_to_be_one_is_not_read(folder):
    with (folder / "mixture.json").open("ab") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(MixtureError, match="too large"):
        read_mixture(folder)
