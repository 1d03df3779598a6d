"""An app folder without code, for `flwr run`: what to start, and with which settings.

Rules: who runs it has smalltalk-fed installed, as every node must; so nothing that executes
travels, and each side runs the code that it has. (The source folder's own pyproject.toml is an
app as well: then Flower's bundle has our code in it.) No flwr is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path

from smalltalk_fed import __version__
from smalltalk_fed.errors import WorldError

SERVER_APP = "smalltalk_fed.flower.server_app:app"
CLIENT_APP = "smalltalk_fed.flower.client_app:app"
KEYS = (
    *("run-dir", "corpus", "config", "settings"),
    *("node-dir", "node-text", "node-weights"),
    "turn-s",
)


def write_app(folder: Path, **config: str | float) -> Path:
    """Make `folder` a Flower app; `config` are run config keys, dashes as underscores.

    Raises:
        WorldError: the disk refuses.
    """
    values = {name.replace("_", "-"): value for name, value in config.items()}
    lines = [
        "[project]",
        'name = "smalltalk-fed-app"',
        f'version = "{__version__}"',
        'description = "A smalltalk-fed run over Flower; its code is installed, not shipped."',
        'license = "Apache-2.0"',
        "",
        "[tool.flwr.app]",
        'publisher = "smalltalk-fed"',
        "",
        "[tool.flwr.app.components]",
        f'serverapp = "{SERVER_APP}"',
        f'clientapp = "{CLIENT_APP}"',
        "",
        "[tool.flwr.app.config]",
        # Flower takes from the command line only keys that stand here.
        *(f"{key} = {json.dumps(values.get(key, _default(key)))}" for key in KEYS),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise WorldError(f"{folder} can't be written ({error.strerror or error}).") from None
    return folder


def _default(key: str) -> str | float:
    return 600.0 if key == "turn-s" else ""
