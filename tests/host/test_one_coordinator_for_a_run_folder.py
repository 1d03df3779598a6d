"""A run folder has one owner at a time, by whatever name it is called."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import UserError
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.offline import decide_offline

HOLDER = """
    import sys
    from pathlib import Path
    from smalltalk_fed.host.folder import RunFolder
    with RunFolder.open(Path(sys.argv[1])).locked():
        print("locked", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    corpus = write_tiny_corpus(tmp_path / "corpus").folder
    config = parse_config({"run": {"experts": 2}, "sequence": {"length": 16, "prefix": 8}}, "test")
    return RunFolder.create(tmp_path / "run", config, "", corpus, Addresses("h:1", "h:2"), 0.0)


def test_another_process_keeps_all_others_out_until_it_is_gone(
    folder: RunFolder, tmp_path: Path
) -> None:
    invite = msg.MakeInvite("a" * 64, 2e6, 1, "")
    link = tmp_path / "link"
    link.symlink_to(folder.path)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        for name in (folder.path, link):
            with (
                pytest.raises(UserError, match="another coordinator is using"),
                RunFolder.open(name).locked(),
            ):
                pass
        with pytest.raises(UserError, match="another coordinator is using"):
            decide_offline(folder, invite, ManualClock())
        holder.kill()  # the kernel drops the lock, however it ends
    with folder.locked():
        pass
    decide_offline(folder, invite, ManualClock())
