"""`smalltalk` as a person meets it: help, results, exit codes, one sentence for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_mixture import LENGTH, change_manifest

from smalltalk_fed import __version__
from smalltalk_fed.cli import run

PROMPT = "one two three four five six seven"
RUN_TOML = f"""
[run]
experts = 3
[sequence]
length = {LENGTH}
prefix = 8
[expert]
model = {{ hidden = 24, layers = 1, heads = 2, feed_forward = 48 }}
steps = 6
batch_sequences = 2
[expert.optimizer]
learning_rate = 1e-3
warmup_steps = 1
"""


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("smalltalk: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def test_help_needs_no_torch_and_lists_the_commands() -> None:
    code = (
        "import sys\nfrom smalltalk_fed.cli import run\nassert run(['--help']) == 0\n"
        "slow = {'torch', 'transformers', 'matplotlib', 'grpc'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in ("demo", "prepare", "baseline", "evaluate", "generate", "Exit codes"):
        assert part in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"smalltalk-fed {__version__}\n"


def test_evaluate_prints_json_alone(
    whole_mixture: Path, corpus: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", whole_mixture, "--corpus", corpus, "--dense", dense, "--json"]
    assert run([*map(str, arguments), "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio_suffix"] == pytest.approx(
        report["mixture"]["suffix_ppl"] / report["dense"]["suffix_ppl"]
    )


def test_evaluate_prints_tables(
    whole_mixture: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(whole_mixture), "--corpus", str(corpus), "--oracle"]
    assert run([*arguments, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for part in ("suffix perplexity (after 8 tokens)", "bits per byte", "best expert", "counting"):
        assert part in out


def test_generate_streams_the_text_and_explains_beside_it(
    whole_mixture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(whole_mixture), "--prompt", PROMPT, "--seed", "3", "--explain"]
    assert run([*arguments, "--tokens", "5", "--device", "cpu"]) == 0
    out, error = capfd.readouterr()
    assert out.startswith(PROMPT)
    assert out.endswith("\n")
    for part in ("router", "score, nats", "price", "chosen", "ahead of the next"):
        assert part in error
        assert part not in out


def test_generate_answers_several_prompts_as_lines(
    whole_mixture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(whole_mixture), f"--prompt={PROMPT}", "--prompt=-1 + 2", "--json"]
    assert run([*arguments, "--tokens", "4", "--seed", "1", "--device", "cpu"]) == 0
    out, error = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == [PROMPT, "-1 + 2"]
    assert all(line["scores"] and line["why"] for line in lines)
    assert error == ""


def test_baseline_makes_a_model_that_evaluate_takes(
    whole_mixture: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(RUN_TOML)
    out, progress = tmp_path / "dense", tmp_path / "progress.json"
    arguments = ["baseline", "--config", tmp_path / "run.toml", "--corpus", corpus, "--out", out]
    arguments += ["--progress-file", progress, "--device", "cpu", "--threads", "1", "--json"]
    assert run([*map(str, arguments)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 6 * 2 * 3 * LENGTH  # the batch is E times larger
    assert result["batch_sequences"] == 6
    assert [step for step, _ in result["curve"]] == [1, 2, 3, 4, 5, 6]
    assert json.loads((out / "baseline.json").read_text())["loss"] == result["loss"]
    assert json.loads(progress.read_text())["step"] == 6
    assert not (out / "unfinished").exists()
    judge = ["evaluate", whole_mixture, "--corpus", corpus, "--dense", out, "--json"]
    assert run([*map(str, judge), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["dense"]["suffix_ppl"] < 1000
    assert run([*map(str, arguments)]) == 2  # never over a finished one
    assert "is not empty" in said(capsys)


def test_the_same_seed_gives_the_same_baseline(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_TOML)
    weights = []
    for name in ("a", "b"):
        arguments = ["baseline", "--config", tmp_path / "run.toml", "--corpus", corpus]
        arguments += ["--out", tmp_path / name, "--device", "cpu", "--threads", "1"]
        assert run([*map(str, arguments)]) == 0
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.slow  # torch's launcher alone takes ten seconds
def test_processes_share_the_batches_of_a_baseline(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_TOML)
    arguments = ["baseline", "--config", tmp_path / "run.toml", "--corpus", corpus]
    arguments += ["--device", "cpu", "--threads", "1"]
    losses = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert run([*map(str, arguments), "--out", str(out), "--processes", str(processes)]) == 0
        assert not (out / "unfinished").exists()
        losses.append(json.loads((out / "baseline.json").read_text())["curve"])
    assert losses[1] == [[step, pytest.approx(loss, rel=1e-4)] for step, loss in losses[0]]


def test_processes_that_cannot_share_a_batch_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(RUN_TOML)
    arguments = ["baseline", "--config", tmp_path / "run.toml", "--corpus", corpus]
    arguments += ["--out", tmp_path / "dense", "--processes", "4"]
    assert run([*map(str, arguments)]) == 2
    assert "a batch of 6 sequences" in said(capsys)
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["evaluate", "MIXTURE"], 2, "either --text FILE or --corpus DIR"),
        (["evaluate", "MIXTURE", "--text", "a", "--corpus", "b"], 2, "either --text"),
        (["evaluate", "nowhere", "--corpus", "CORPUS"], 2, "is not a mixture"),
        (["evaluate", "MIXTURE", "--corpus", "nowhere"], 2, "does not exist"),
        (["evaluate", "MIXTURE", "--text", "nowhere.txt"], 2, "does not exist"),
        (["evaluate", "MIXTURE", "--corpus", "CORPUS", "--dense", "nowhere"], 2, "no model"),
        (["evaluate", "MIXTURE", "--corpus", "CORPUS", "--device", "abacus"], 2, "abacus"),
        (["generate", "nowhere", "--prompt", "x"], 2, "is not a mixture"),
        (["baseline", "--config", "no.toml", "--corpus", "c", "--out", "o"], 2, "does not exist"),
        (["demo", "--out", "CORPUS"], 2, "not an earlier demo's"),
        (["demo", "--out", "NEW", "--set", "expert.stesp=1"], 2, "did you mean 'expert.steps'"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    code: int,
    sentence: str,
    whole_mixture: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MIXTURE": whole_mixture, "CORPUS": corpus, "NEW": tmp_path / "new"}
    assert run([str(places.get(argument, argument)) for argument in arguments]) == code
    assert sentence in said(capsys)


def test_wrong_use_has_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate"]) == 2
    assert run(["sing"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_refused_mixture_is_exit_code_2(
    mixture: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_manifest(mixture, tokenizer_sha256="0" * 64)
    assert run(["evaluate", str(mixture), "--corpus", str(corpus)]) == 2
    assert "tokenizer" in said(capsys)


def test_ctrl_c_is_exit_code_130(
    whole_mixture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smalltalk_fed.evaluate.perplexity.evaluate", interrupted)
    assert run(["evaluate", str(whole_mixture), "--corpus", "c"]) == 130
    assert said(capsys) == "smalltalk: interrupted."


def test_a_missing_part_of_the_product_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("smalltalk_fed.demo.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["demo", "--out", "nowhere"]) == 4
    assert "pip install 'smalltalk-fed[all]'" in said(capsys)
