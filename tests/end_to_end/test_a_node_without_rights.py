"""A node as its systemd unit and its container run it: no user's rights, nothing writable.

The file system is read only but for the node's folder and /tmp; the user is nobody, without
capabilities and without a way to new ones. Root makes the place with a mount namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.deployment import BIN, ENV, Deployment, good, wait_for

NOBODY = 65534
# $1: the node's folder, $2: the corpus; then the command, which sees them under /mnt.
PLACE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/node /mnt/corpus
mount --bind "$1" /mnt/node
mount --bind "$2" /mnt/corpus
shift 2
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,bind,ro /mnt/corpus
mount -o remount,bind,ro /mnt
mount -o remount,bind,ro /
cd /
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all -- "$@"
"""


def place(node: Path, corpus: Path) -> list[str]:
    """What goes in front of a command."""
    return ["unshare", "--mount", "sh", "-c", PLACE, "sh", str(node), str(corpus)]


@pytest.fixture
def without_rights(tmp_path: Path, small_corpus: Path) -> Callable[..., list[str]]:
    if os.getuid() or not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("needs root, unshare and setpriv to make the place")
    node = tmp_path / "node"
    node.mkdir(mode=0o700)
    os.chown(node, NOBODY, NOBODY)
    made = place(node, small_corpus)
    look = [*made, sys.executable, "-c", "import smalltalk_node.cli, torch"]
    done = subprocess.run(look, capture_output=True, text=True, env=ENV, check=False)
    if done.returncode:
        pytest.skip(f"nobody can't use this Python here: {done.stderr.strip()[-200:]}")
    return lambda *command: [*made, *map(str, command)]


def test_the_place_is_what_it_says(without_rights: Callable[..., list[str]]) -> None:
    script = (
        "id -u; touch /usr/x 2>&1; touch /mnt/corpus/x 2>&1; touch /mnt/node/x && rm /mnt/node/x; "
        "grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status"
    )
    done = subprocess.run(
        without_rights("sh", "-c", script), capture_output=True, text=True, check=True
    )
    lines = done.stdout.split("\n")
    assert lines[0] == str(NOBODY)
    assert done.stdout.count("Read-only file system") == 2
    assert "CapEff:\t0000000000000000" in lines
    assert "CapBnd:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines


def test_a_node_without_rights_works_and_listens_on_no_port(
    deploy: Callable[..., Deployment], without_rights: Callable[..., list[str]]
) -> None:
    run = deploy(**{"expert.steps": 600})
    run.init()
    run.serve()
    token = good("smalltalk-coordinator", "invite", run.run)
    node = ("--dir", "/mnt/node/folder")
    join = without_rights(BIN / "smalltalk-node", "join", token, *node, "--name", "nobody")
    subprocess.run(join, env=ENV, check=True, capture_output=True, timeout=60)
    arguments = ("run", *node, "--corpus", "/mnt/corpus", "--threads", 1)
    arguments += ("--disk-gb", 1, "--memory-gb", 2, "--share", 0.9)
    run.at_nodes = without_rights()
    run.start("node", "smalltalk-node", *arguments)
    run.wait_phase("training")
    wait_for(lambda: run.glance()["units"]["leased"], "a unit in work")
    child = run.children["node"].pid
    assert Path(f"/proc/{child}").stat().st_uid == NOBODY
    assert listening(child) == []
    assert listening(run.children["coordinator"].pid), "the search for listeners finds none"
    run.wait_phase("finished")
    assert run.children.pop("node").wait(60) == 0, run.log("node")
    assert "Traceback" not in run.log("node")


def listening(process: int) -> list[str]:
    """Local addresses of the TCP sockets of a process that wait for connections."""
    mine = set()
    for handle in Path(f"/proc/{process}/fd").iterdir():
        link = str(handle.readlink())
        if link.startswith("socket:["):
            mine.add(link[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in mine:
                found.append(fields[1])
    return found
