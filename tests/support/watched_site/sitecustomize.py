"""Imported by every Python process that has this folder on its path: notes what is executed.

One line a file in the folder WATCHED_NOTES for each global that an unpickler looks up, each
value that is unmarshalled other than by an import, and each text that our own code compiles
or executes: the event, what it was about, and the modules on the stack, innermost first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import FrameType

OURS = ("smalltalk_fed", "smalltalk_node", "smalltalk_coordinator")
_notes = Path(os.environ["WATCHED_NOTES"], f"{os.getpid()}.jsonl").open("a", buffering=1)  # noqa: SIM115
_busy = False


def _modules(frame: FrameType | None) -> list[str]:
    found: list[str] = []
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "?"))
        if not found or found[-1] != name:
            found.append(name)
        frame = frame.f_back
    return found


def _concerns(event: str, modules: list[str]) -> bool:
    nearest = modules[0] if modules else ""
    if event == "pickle.find_class":
        return True
    if event in ("marshal.loads", "marshal.load"):
        return not nearest.startswith(("importlib.", "_frozen_importlib", "zipimport"))
    return nearest.partition(".")[0] in OURS  # compile, exec


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    global _busy
    if _busy or event not in (
        "pickle.find_class", "marshal.loads", "marshal.load", "compile", "exec",
    ):  # fmt: skip
        return
    modules = _modules(sys._getframe().f_back)
    if not _concerns(event, modules):
        return
    _busy = True
    try:
        what = [str(argument)[:100] for argument in arguments]
        program = Path(sys.argv[0]).name if getattr(sys, "argv", None) else ""
        _notes.write(json.dumps([program, event, what, modules]) + "\n")
    finally:
        _busy = False


sys.addaudithook(_watch)
_notes.write(json.dumps(["", "watching", [], []]) + "\n")
