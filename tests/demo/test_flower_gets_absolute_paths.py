"""`make demo-flower` names a relative folder; Flower's configuration takes absolute paths alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from smalltalk_fed.demo.children import Children
from smalltalk_fed.demo.federation import Federation


def test_a_relative_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    federation = Federation(Path("demo-flower"), Children(tmp_path))
    assert federation.folder == tmp_path / "demo-flower"
    assert Path(Federation.environment(Path("demo-flower"))["FLWR_HOME"]).is_absolute()
