"""`smalltalk demo --private`: four silos as programs, their table, and what travelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.deployment import command


def test_it_has_its_own_silos_and_experts(tmp_path: Path) -> None:
    done = command("smalltalk", "demo", "--private", "--experts", 3, "--out", tmp_path / "demo")
    assert done.returncode == 2
    assert "four silos with two experts each" in done.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_one_runs_to_its_table(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = command("smalltalk", "demo", "--private", "--preset", "quick", "--out", out, wait_s=800)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert [row["silo"] for row in report["silos"]] == [f"silo-{n}" for n in range(4)]
    assert sum(len(row["domains"]) for row in report["silos"]) == 8
    for row in report["silos"]:
        assert row["evaluation"]["mixture"]["suffix_ppl"] > 1
        assert row["domains"][0].replace("_", " ") in done.stdout
    kinds = {row["kind"] for row in report["traffic"]}
    assert {"parameters", "counts", "tokenizer"} <= kinds
    assert not kinds & {"scores", "ids", "experts"}
    assert (out / "mixture" / "mixture.json").exists()
    assert not (out / "work").exists()
