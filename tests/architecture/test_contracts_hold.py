"""What the architecture promises and import-linter can't see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smalltalk_fed.config.reference import markdown
from smalltalk_fed.core.phases import mermaid
from smalltalk_fed.wire import limits_page

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "tokenizers", "pyarrow", "matplotlib", "safetensors.torch"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import smalltalk_coordinator.cli, smalltalk_coordinator.server",
        "import smalltalk_fed.host.jobs, smalltalk_fed.host.assemble",
        "import smalltalk_node.cli",  # torch only when work starts
        "import smalltalk_fed.cli",
    ],
)
def test_this_imports_no_torch(statement: str) -> None:
    assert not HEAVY & modules_after(statement)


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "tokenizers"):
    sys.modules[name] = None
from smalltalk_coordinator.cli import main
sys.argv = ["smalltalk-coordinator", "--help"]
main()
"""


def test_the_coordinator_runs_where_torch_can_not_be_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def test_the_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    from grpc_tools import protoc

    source = ROOT / "protos" / "smalltalk.proto"
    code = protoc.main(
        [
            "protoc",
            f"-Ismalltalk_fed/proto/v1={source.parent}",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            "smalltalk_fed/proto/v1/smalltalk.proto",
        ]
    )
    assert code == 0
    for made in tmp_path.rglob("smalltalk_pb2*"):
        committed = ROOT / made.relative_to(tmp_path)
        assert committed.read_text() == made.read_text(), f"run `make protos`: {committed.name}"


def test_the_pages_made_from_code_are_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown(), "run `make docs`"
    assert (ROOT / "docs" / "limits.md").read_text() == limits_page.markdown(), "run `make docs`"
    assert mermaid() in (ROOT / "docs" / "protocol.md").read_text(), "run `make docs`"


def test_no_layer_reads_what_only_the_developers_have() -> None:
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in (".venv", ".git", "demo", "tests") or not path.is_file():
            continue
        if path.suffix in (".py", ".toml", ".md", "") and path.stat().st_size < 1_000_000:
            assert "../shared" not in path.read_text(errors="ignore"), relative
