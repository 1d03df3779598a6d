"""Where the demonstration writes, what it configures, and what it says while it works."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.demo import recipe
from smalltalk_fed.demo.folder import MARKER, claim
from smalltalk_fed.demo.live import DemoView, phase_fraction, size
from smalltalk_fed.demo.plan import Step, make_plan
from smalltalk_fed.demo.prompts import heldout_prompts
from smalltalk_fed.demo.running import free_ports
from smalltalk_fed.errors import ConfigError, UserError, WorldError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_claimed(tmp_path: Path) -> None:
    folder, replaced = claim(tmp_path / "deep" / "demo")
    assert not replaced
    assert (folder.path / MARKER).is_file()
    assert folder.work.is_dir()


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    folder, _ = claim(tmp_path / "demo")
    (folder.path / "report.html").write_text("old")
    folder.mixture.mkdir()
    folder, replaced = claim(tmp_path / "demo")
    assert replaced
    assert names_in(folder.path) == [MARKER, "work"]


def test_what_is_not_a_demo_stays_untouched(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(UserError, match="not an earlier demo's"):
        claim(tmp_path)
    assert names_in(tmp_path) == ["letters"]
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "letters")


def test_only_the_work_is_removed(tmp_path: Path) -> None:
    folder, _ = claim(tmp_path / "demo")
    folder.logs.mkdir()
    folder.remove_work()
    assert folder.logs.is_dir()
    assert not folder.work.exists()


def test_options_are_written_into_the_packaged_file(tmp_path: Path) -> None:
    settings = (
        "assignment.method=paper",
        "expert.optimizer.learning_rate=0.5",
        "expert.accumulate=2",
    )
    text = recipe.run_toml("full", 7, 6, 3, settings)
    (tmp_path / "run.toml").write_text(text)
    config = load_config(tmp_path / "run.toml")
    assert (config.run.seed, config.run.experts, config.run.nodes_to_start) == (7, 6, 3)
    assert config.assignment.method == "paper"
    assert config.expert.optimizer.learning_rate == 0.5
    (tmp_path / "plain.toml").write_text(recipe.run_toml("full", 7, 6, 3))
    assert config.router.optimizer == recipe.check(tmp_path / "plain.toml").router.optimizer
    assert config.expert.accumulate == 2
    assert text.startswith("# The demonstration's run")


def test_a_table_that_is_missing_is_added(tmp_path: Path) -> None:
    text = recipe._changed("[run]\nseed = 1\n", "compute.threads=2")
    assert text == "[run]\nseed = 1\n\n[compute]\nthreads = 2\n"


@pytest.mark.parametrize("preset", ["full", "quick"])
def test_presets_are_valid(preset: recipe.Preset, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(recipe.run_toml(preset, 1, 4, 4))
    config = recipe.check(tmp_path / "run.toml")
    assert config.expert.model.parameters(recipe.VOCABULARY) < 300_000


@pytest.mark.parametrize("setting", ["seed", "seed=2", "run.=2", "=3"])
def test_a_setting_without_a_key_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        recipe.run_toml("full", 1, 4, 4, (setting,))


def test_a_misspelt_key_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(recipe.run_toml("full", 1, 4, 4, ("expert.stesp=3",)))
    with pytest.raises(ConfigError, match=r"did you mean 'expert\.steps'"):
        recipe.check(tmp_path / "run.toml")


def test_prompts_are_beginnings_of_heldout_text(labelled_corpus: Path) -> None:
    prompts = heldout_prompts(labelled_corpus, 6)
    assert [prompt.domain for prompt in prompts] == ["numbers", "colours", "animals"]
    assert all(prompt.text.startswith(prompt.domain[:3]) for prompt in prompts)


def test_ports_are_different() -> None:
    assert len(set(free_ports(3))) == 3


def test_fraction_of_a_phase_counts_copies_once() -> None:
    status = {
        "phase": "training",
        "units": {"open": 1, "leased": 2, "finished": 1},
        "nodes": [
            {"unit": "train_expert/0", "fraction": 0.5},
            {"unit": "train_expert/0", "fraction": 0.25},
            {"unit": "train_expert/1", "fraction": 0.5},
            {"unit": None, "fraction": 0.0},
        ],
    }
    assert phase_fraction(status) == pytest.approx(2 / 4)


def test_fraction_of_routing_counts_rounds() -> None:
    units = {"open": 0, "leased": 2, "finished": 2}
    status = {"phase": "routing", "round": 3, "rounds": 10, "units": units, "nodes": []}
    assert phase_fraction(status) == pytest.approx(0.25)
    assert phase_fraction({"phase": "recruiting", "units": {}}) == 0.0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (17_700_000, "17.7 MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_time_left_shrinks_as_steps_end_and_follows_the_machine() -> None:
    config = load_config(None)
    plan = make_plan(config, 2, 4)
    before = plan.left_s(Step.PREPARE, 0.0)
    plan.finish(Step.PREPARE, plan.expected_s[Step.PREPARE])
    assert plan.left_s(Step.ENROL, 0.0) < before
    usual = plan.left_s(Step.TRAINING, 0.0)
    plan.finish(Step.PREPARE, plan.expected_s[Step.PREPARE] / 10)  # says nothing of training
    assert plan.left_s(Step.TRAINING, 0.0) == usual
    plan.finish(Step.ROUTING, 3 * plan.expected_s[Step.ROUTING])
    assert plan.left_s(Step.TRAINING, 0.0) == pytest.approx(3 * usual)


def test_a_pipe_gets_lines_and_no_control_characters() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=100)
    with DemoView(console, make_plan(load_config(None), 2, 4)) as view:
        view.begin(Step.ROUTING)
        view.update(0.5, "round 3 of 6", {"nodes": []})
        view.end("6 rounds")
    said = out.getvalue()
    assert "\x1b" not in said
    assert "Routers learn" in said
    assert "6 rounds" in said


def test_a_terminal_sees_nodes_bytes_and_time_left() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    view = DemoView(console, make_plan(load_config(None), 2, 4))
    view.begin(Step.ROUTING)
    node = {
        "node_id": "n-1",
        "name": "node-1",
        "present": True,
        "unit": "router_round/2/7",
        "fraction": 0.5,
        "figures": {"tokens_per_s": 41234.0, "loss": 4.321},
    }
    row = {"node_id": "n-1", "direction": "up", "bytes": 2_000_000, "kind": "scores"}
    status = {"nodes": [node], "bytes": {"rows": [row], "coordination_up": 2_000_000}}
    view.update(0.5, "round 7 of 24", status)
    console.print(view._render())
    said = out.getvalue()
    for part in ("router 2, round 7", "41,234", "4.32", "2.0 MB", "left", "round 7 of 24"):
        assert part in said


def test_an_unwritable_place_is_nobodys_bug(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, WorldError)):
        claim(tmp_path / "file" / "demo")
