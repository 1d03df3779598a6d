"""What `flwr build` makes of the source folder, and the app folder without code."""

from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from smalltalk_fed.flower.app_folder import CLIENT_APP, KEYS, SERVER_APP, write_app

ROOT = Path(__file__).parents[2]


def names_in(app: Path) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))).namelist()


def test_the_bundle_has_the_library_and_nothing_else() -> None:
    names = names_in(ROOT)
    for path in (ROOT / "smalltalk_fed").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    others = {name for name in names if not name.startswith("smalltalk_fed/")}
    assert others == {"pyproject.toml", "LICENSE", "README.md", ".info/CONTENT"}


def test_an_app_folder_without_code_is_one_that_flower_takes(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", turn_s=30.0, run_dir="/runs/one")
    config, _ = load_and_validate(app / "pyproject.toml")
    assert config["tool"]["flwr"]["app"]["config"]["run-dir"] == "/runs/one"
    assert set(names_in(app)) == {"pyproject.toml", ".info/CONTENT"}


def test_both_apps_have_the_same_parts_and_keys(tmp_path: Path) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    made = tomllib.loads((write_app(tmp_path) / "pyproject.toml").read_text())["tool"]["flwr"][
        "app"
    ]
    assert ours["components"] == made["components"]
    assert ours["components"] == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    assert ours["config"] == made["config"]
    assert tuple(ours["config"]) == KEYS
