"""A Flower federation on this machine: SuperLink and SuperNodes as processes, or a simulation.

Rules: everything is under one folder, Flower's home included; TLS and node authentication are
on (the keys and the certificate are made here); nothing of Flower's installs packages, calls
home or stays behind: the processes are `Children`, which end with their parent's block.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smalltalk_fed.demo.children import Child, Children, program, tail
from smalltalk_fed.demo.running import free_ports
from smalltalk_fed.errors import WorldError
from smalltalk_fed.wire.certificates import CertificateAuthority, key_to_pem, make_key
from smalltalk_fed.wire.secret_files import private_folder, write_secret

START_S = 90.0
LOOK_EVERY_S = 20.0
LINK = "here"  # the connection's name in Flower's configuration


@dataclass
class Federation:
    """Start it inside the `with` block of its `children`, which are given its environment."""

    folder: Path
    children: Children
    simulated_nodes: int = 0  # > 0: Flower's simulation engine instead of SuperNodes
    port: int = 0
    superlink: Child | None = None
    supernodes: list[Child] = field(default_factory=list)

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        """What its processes are started with."""
        home = folder.absolute() / "flower-home"
        return {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def __post_init__(self) -> None:
        self.folder = self.folder.absolute()  # Flower's configuration takes no other paths

    def start(self) -> None:
        """The SuperLink, and its name in Flower's configuration.

        Raises:
            WorldError: it does not start.
        """
        self.port = free_ports(1)[0]
        command = [program("flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation"]
        if self.simulated_nodes:
            command += ["--simulation", "--insecure"]
        else:
            command += [*self._tls(), "--enable-supernode-auth"]
        self._write_config()
        self.superlink = self.children.start("superlink", command)
        self._wait_for_link()

    def add_node(self, name: str, config: dict[str, str]) -> Child:
        """A SuperNode of our own, registered and started; `config` is its node config.

        Raises:
            WorldError: the SuperLink does not take it.
        """
        key = self._node_key(name)
        register = [program("flwr"), "supernode", "register", str(key.with_suffix(".pub")), LINK]
        self.children.run(f"register-{name}", register, watch=self._watched())
        return self.start_node(name, config)

    def start_node(self, name: str, config: dict[str, str]) -> Child:
        """Start a SuperNode that is registered."""
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        node = self.children.start(
            name,
            [
                *(program("flower-supernode"), "--superlink", f"127.0.0.1:{self.port}"),
                *("--root-certificates", str(self._place / "ca.pem")),
                *("--auth-supernode-private-key", str(self._place / name)),
                *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
                *("--node-config", given),
            ],
        )
        self.supernodes.append(node)
        return node

    def submit(self, app: Path, **run_config: str | float) -> str:
        """`flwr run`: hand a run in; returns Flower's id of it.

        Raises:
            WorldError: Flower does not take it.
        """
        command = [program("flwr"), "run", str(app), LINK, "--format", "json"]
        for name, value in run_config.items():
            command += ["--run-config", f"{name.replace('_', '-')}={json.dumps(value)}"]
        if self.simulated_nodes:
            nodes = f"num-supernodes={self.simulated_nodes}"
            command += ["--federation-config", f"{nodes} client-resources-num-cpus=1"]
        said = self.children.run("flwr-run", command, watch=self._watched())
        return str(_last_object(said)["run-id"])

    def wait(
        self, run_id: str, limit_s: float, over: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Until Flower says that the run is over; returns its line of `flwr ls`.

        That costs a second of processor time, so it is asked rarely, unless `over` says so, which
        is called twice a second.

        Raises:
            WorldError: a program ended, or it takes longer than `limit_s`.
        """
        began = looked_at = time.monotonic()
        while True:
            self.children.check()
            time.sleep(0.5)
            now = time.monotonic()
            if not over() and now - looked_at < LOOK_EVERY_S:
                continue
            looked_at = now
            line = self.look(run_id)
            if str(line["status"]).startswith("finished"):
                return line
            if now - began > limit_s:
                raise WorldError(f"the Flower run {run_id} did not end within {limit_s:.0f} s.")

    def look(self, run_id: str) -> dict[str, Any]:
        """The run's line of `flwr ls`."""
        command = [program("flwr"), "ls", LINK, "--run-id", run_id, "--format", "json"]
        said = self.children.run("flwr-ls", command, watch=self._watched())
        line: dict[str, Any] = _last_object(said)["runs"][0]
        return line

    def log(self, run_id: str) -> str:
        """What `flwr log` shows of a run."""
        command = [program("flwr"), "log", run_id, LINK, "--show"]
        return self.children.run("flwr-log", command, watch=self._watched())

    # ------------------------------------------------------------------------------- small

    @property
    def _place(self) -> Path:
        return private_folder(self.folder / "flower-keys")

    def _watched(self) -> list[Child]:
        return [self.superlink] if self.superlink else []

    def _tls(self) -> list[str]:
        """An authority and a certificate for loopback; options that name them."""
        now = time.time()
        authority, key = CertificateAuthority.create("smalltalk flower", now), make_key()
        write_secret(self._place / "ca.pem", authority.certificate_pem)
        write_secret(self._place / "link.key", key_to_pem(key))
        write_secret(self._place / "link.pem", authority.issue_server(key, ["127.0.0.1"], now))
        return [
            *("--ssl-ca-certfile", str(self._place / "ca.pem")),
            *("--ssl-certfile", str(self._place / "link.pem")),
            *("--ssl-keyfile", str(self._place / "link.key")),
        ]

    def _node_key(self, name: str) -> Path:
        """A key that a SuperNode shows, as Flower reads them."""
        key, path = ec.generate_private_key(ec.SECP384R1()), self._place / name
        form = serialization.PrivateFormat.OpenSSH
        plain = serialization.NoEncryption()
        write_secret(path, key.private_bytes(serialization.Encoding.PEM, form, plain))
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        write_secret(path.with_suffix(".pub"), public)
        return path

    def _write_config(self) -> None:
        home = Path(self.environment(self.folder)["FLWR_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        link = [f"[superlink.{LINK}]", f'address = "127.0.0.1:{self.port}"']
        if self.simulated_nodes:
            link += ["insecure = true"]
        else:
            link += [f"root-certificates = {json.dumps(str(self._place / 'ca.pem'))}"]
        lines = ["[superlink]", f'default = "{LINK}"', "", *link]
        (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _wait_for_link(self) -> None:
        """Until the SuperLink answers."""
        assert self.superlink is not None
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            self.superlink.check()
            if self.superlink.ended:
                break
            if self._answers():
                return
            time.sleep(0.2)
        raise WorldError(f"Flower's SuperLink did not start.{tail(self.superlink.log)}")

    def _answers(self) -> bool:
        import ssl

        scheme, context = "http", None
        if not self.simulated_nodes:
            scheme = "https"
            context = ssl.create_default_context(cafile=str(self._place / "ca.pem"))
        with contextlib.suppress(OSError):
            url = f"{scheme}://127.0.0.1:{self.port}/health"
            with urllib.request.urlopen(url, timeout=2.0, context=context) as answer:
                return bool(answer.status == 200)
        return False


def _last_object(said: str) -> dict[str, Any]:
    """The JSON object at the end of what a program printed."""
    start = said.find("{")
    try:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(said[start:])[0]
    except ValueError:
        raise WorldError(f"Flower answered something else than JSON: {said[-500:]}") from None
    return found
