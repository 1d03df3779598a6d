"""The systemd units and compose files give the programs no more than they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = {
    "node": ROOT / "node" / "smalltalk-node.service",
    "coordinator": ROOT / "coordinator" / "smalltalk-coordinator.service",
}
# systemd's own measure, 0 (nothing) to 10 (everything); "OK" ends at 3.
EXPOSURE_MAX = {"node": 1.6, "coordinator": 1.2}
BOTH = {
    "User": "smalltalk", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
    "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "RestrictNamespaces": "yes",
    "SystemCallArchitectures": "native", "PrivateMounts": "yes",
    "SocketBindDeny": "any", "UMask": "0077", "StateDirectoryMode": "0700",
}  # fmt: skip


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", list(UNITS))
def test_a_unit_has_no_rights_and_one_place_to_write(name: str) -> None:
    found = directives(UNITS[name])
    assert {key: found.get(key) for key in BOTH} == {key: [value] for key, value in BOTH.items()}
    assert found["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert found["StateDirectory"] == [f"smalltalk-{name}"]
    assert not {"ReadWritePaths", "AmbientCapabilities"} & {k for k, v in found.items() if any(v)}
    (command,) = found["ExecStart"]
    assert f"/var/lib/smalltalk-{name}/" in command


def test_a_node_may_listen_nowhere_and_a_coordinator_on_its_two_ports() -> None:
    assert "SocketBindAllow" not in directives(UNITS["node"])
    assert directives(UNITS["coordinator"])["SocketBindAllow"] == ["tcp:7070", "tcp:7071"]


@pytest.mark.parametrize("name", list(UNITS))
def test_systemd_understands_a_unit_and_finds_it_little_exposed(name: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze here")
    unit = tmp_path / UNITS[name].name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNITS[name].read_text()))
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in verify.stderr.splitlines() if unit.name in line]
    assert said == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "offline" in judged.stderr:
        pytest.skip("this systemd-analyze judges no files")
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert exposure, judged.stdout[-500:] + judged.stderr
    assert float(exposure[1]) <= EXPOSURE_MAX[name]


@pytest.mark.parametrize("name", list(UNITS))
def test_a_container_has_no_rights_and_only_a_coordinator_has_ports(name: str) -> None:
    compose = (ROOT / name / "example" / "compose.yaml").read_text()
    for line in (
        "read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]',
        'user: "1000:1000"', "pids_limit: 512",
    ):  # fmt: skip
        assert f"    {line}\n" in compose, line
    assert ("ports:" in compose) == (name == "coordinator")
    dockerfile = (ROOT / name / "Dockerfile").read_text()
    assert "\nUSER 1000:1000\n" in dockerfile
    assert "EXPOSE" not in dockerfile
