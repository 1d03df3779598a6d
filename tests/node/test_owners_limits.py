"""What a machine's owner sets: remembered, and a run beyond it is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from smalltalk_node import cli
from smalltalk_node.options import Options
from smalltalk_node.program import Program
from support.node_stage import STOP, Stage
from support.tiny_run import tiny_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import UserError
from smalltalk_fed.telemetry.console import run_program
from smalltalk_fed.worksite.footprint import disk_need, memory_need
from smalltalk_fed.worksite.limits import LIMITS_FILE, Limits, refuse

LARGE = {"hidden": 8192, "layers": 80, "heads": 64}


def command(*arguments: object) -> int:
    return run_program(cli.app, cli.NAME, [str(argument) for argument in arguments])


@pytest.fixture
def manifest(corpus: TokenCorpus) -> RunManifest:
    return tiny_manifest(corpus)


# --------------------------------------------------------------------------------- the file


def test_without_a_file_there_are_no_limits(tmp_path: Path) -> None:
    assert Limits.load(tmp_path) == Limits()
    assert Limits().describe() == "none set"


def test_what_was_given_is_remembered_and_can_be_lifted(tmp_path: Path) -> None:
    limits = Limits().changed(
        hours="22-7", memory_gb=8.5, disk_gb=50, share=0.5, model_folder='/srv/a "b"'
    )
    limits.save(tmp_path)
    assert Limits.load(tmp_path) == limits
    lifted = limits.changed(hours="always", memory_gb=0, share=1, gpu_memory_gb=None)
    assert (lifted.hours, lifted.memory_gb, lifted.share, lifted.disk_gb) == ("", 0, 1, 50)
    assert "8.5 GB" in limits.describe()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory = 8", "no limit called 'memory'"),
        ("memory_gb = -1", "'memory_gb'"),
        ("memory_gb = nan", "'memory_gb'"),
        ("share = 0", "'share'"),
        ("share = 2", "'share'"),
        ("hours = 'nine'", "are no hours"),
        ("hours = 22", "'hours'"),
        ("hours", "can't be read"),
        ("\xff", "can't be read"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / LIMITS_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=says) as found:
        Limits.load(tmp_path)
    assert LIMITS_FILE in str(found.value)


def test_an_option_out_of_bounds_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--memory-gb"):
        Limits().changed(memory_gb=float("inf"))
    with pytest.raises(UserError, match="are no hours"):
        Limits().changed(hours="soon")


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("limit", ["memory_gb", "disk_gb"])
def test_a_run_that_needs_more_is_refused_with_both_figures(
    corpus: TokenCorpus, manifest: RunManifest, limit: str
) -> None:
    limits = Limits().changed(**{limit: 5})
    refuse(manifest, limits, on_gpu=False)
    large = tiny_manifest(corpus, expert={"model": LARGE})
    with pytest.raises(UserError, match=f"may use 5 GB.*--{limit.replace('_', '-')}"):
        refuse(large, limits, on_gpu=False)
    refuse(large, Limits(), on_gpu=False)  # whoever sets none, has none


def test_a_gpus_memory_has_a_limit_of_its_own(corpus: TokenCorpus, manifest: RunManifest) -> None:
    limits = Limits().changed(gpu_memory_gb=5)
    refuse(manifest, limits, on_gpu=True)
    large = tiny_manifest(corpus, expert={"model": LARGE})
    refuse(large, limits, on_gpu=False)
    with pytest.raises(UserError, match="GPU memory"):
        refuse(large, limits, on_gpu=True)


def test_more_of_anything_needs_no_less(corpus: TokenCorpus) -> None:
    """Estimates grow with every part of the shape that costs memory or disk."""
    base = {"hidden": 256, "layers": 4, "heads": 4, "feed_forward": 512}
    small = tiny_manifest(corpus, expert={"model": base, "batch_sequences": 8})
    for change in (
        {"model": base | {"hidden": 512}}, {"model": base | {"layers": 8}},
        {"model": base | {"feed_forward": 4096}}, {"model": base, "batch_sequences": 4096},
    ):  # fmt: skip
        large = tiny_manifest(corpus, expert=change)
        for on_gpu in (False, True):
            more, less = (memory_need(m, on_gpu=on_gpu) for m in (large, small))
            assert more.host_bytes + more.gpu_bytes > less.host_bytes + less.gpu_bytes
        assert disk_need(large) >= disk_need(small)


def test_a_model_on_this_machine_is_read_only_if_its_owner_says_so(
    corpus: TokenCorpus, tmp_path: Path
) -> None:
    """Else a run could have any model that it can name trained a step and sent home."""
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    manifest = tiny_manifest(corpus, expert={"init": str(tmp_path / "link")})
    for limits in (Limits(), Limits(model_folder=str(tmp_path))):
        with pytest.raises(UserError, match="--model-folder"):
            refuse(manifest, limits, on_gpu=False)
    refuse(manifest, Limits(model_folder=str(tmp_path / "model")), on_gpu=False)


def test_a_refused_run_is_told_and_nothing_of_it_is_kept(stage: Stage) -> None:
    stage.script(STOP, manifest=tiny_manifest(stage.corpus, expert={"model": LARGE}))
    program = Program(stage.folder, Options(stage.corpus.folder, "cpu", 1, Limits(memory_gb=2.0)))
    with pytest.raises(UserError, match=r"about .* GB of memory"):
        program.run()
    assert stage.loopback.exchanges == []
    assert "may use 2 GB" in stage.loopback.left[0].reason
    assert not stage.folder.file("manifest.json").exists()
    assert stage.folder.identity().run_id == ""


def test_the_command_remembers_and_ends_with_a_users_exit_code(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.script(STOP)
    options = ("--dir", stage.folder.path, "--corpus", stage.corpus.folder, "--device", "cpu")
    assert command("run", *options, "--disk-gb", 7, "--share", 0.5) == 0
    assert Limits.load(stage.folder.path) == Limits(disk_gb=7, share=0.5)
    stage.script(STOP)
    assert command("run", *options, "--share", 1) == 0
    assert Limits.load(stage.folder.path) == Limits(disk_gb=7)
    stage.script(STOP, manifest=tiny_manifest(stage.corpus, expert={"model": LARGE}))
    assert command("run", *options) == 2
    err = capsys.readouterr().err
    assert "--disk-gb" in err.splitlines()[-1]


def test_doctor_says_which_limits_there_are_and_if_the_run_exceeds_them(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.machine, "exact_devices", lambda: ["cpu"])
    Limits(memory_gb=2.0, hours="22-7").save(stage.folder.path)
    assert command("doctor", "--dir", stage.folder.path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "works 22-7 o'clock, at most 2 GB of memory" in text
    large = tiny_manifest(stage.corpus, expert={"model": LARGE})
    stage.folder.file("manifest.json").write_bytes(large.to_bytes())
    assert command("doctor", "--dir", stage.folder.path) == 2
