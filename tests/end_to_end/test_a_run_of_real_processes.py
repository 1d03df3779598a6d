"""Coordinator and nodes as processes over mutual TLS: the method, the bytes, the trouble."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.deployment import Deployment, command, free_port, good, wait_for

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.evaluate.mixture import Mixture
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.train.em import run_em
from smalltalk_fed.wire.certificates import SERVER_NAME

Deploy = Callable[..., Deployment]


def run_to_the_end(run: Deployment, *names: str) -> None:
    run.init()
    run.serve()
    for name in names:
        run.join(name)
        run.node(name)
    run.wait_phase("finished")
    for name in names:
        assert run.children.pop(name).wait(60) == 0, run.log(name)


def processes_of(session_leader: int) -> list[str]:
    """Processes that a child started and that live on; children are leaders of a session."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session_leader and fields[0] != "Z":
                alive.append(stat.parent.name)
    return alive


def test_the_distributed_run_assigns_as_the_oracle_does_sequence_by_sequence(
    deploy: Deploy, tmp_path: Path
) -> None:
    run = deploy()
    run_to_the_end(run, "a", "b")
    good("smalltalk-coordinator", "export", run.run, "--assignments", tmp_path / "a.npz")
    manifest = RunManifest.from_bytes((run.run / "manifest.json").read_bytes())
    oracle = run_em(manifest, TokenCorpus.open(run.corpus))
    with np.load(tmp_path / "a.npz") as found:
        for number, expected in enumerate(oracle.rounds, start=1):
            for expert in range(2):
                mine = found[f"round_{number:03d}_experts"] == expert
                ids = found[f"round_{number:03d}_ids"][mine]
                assert sorted(ids) == sorted(expected.ids[expected.experts == expert]), number
        for expert in range(2):
            ids = found["segment_ids"][found["segment_experts"] == expert]
            assert np.array_equal(ids, oracle.segment(expert))
        assert np.array_equal(found["heldout_experts"], oracle.heldout_experts)
    for expert, parameters in enumerate(oracle.routers):
        assert (
            run.run / "mixture" / "routers" / f"{expert}.safetensors"
        ).read_bytes() == parameters


def test_the_mixture_loads_generates_and_evaluates(deploy: Deploy) -> None:
    run = deploy(**{"run.experts": 3})
    run_to_the_end(run, "a")  # fewer nodes than experts
    mixture = run.run / "mixture"
    assert len(Mixture.load(mixture).manifest.experts) == 3
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(mixture / "experts" / "1", local_files_only=True)
    report = json.loads(good("smalltalk", "evaluate", mixture, "--corpus", run.corpus, "--json"))
    said = run.status()["evaluation"]["suffix_ppl"]
    assert report["mixture"]["suffix_ppl"] == pytest.approx(said, rel=1e-4)
    assert good("smalltalk", "generate", mixture, "--prompt", "def main", "--tokens", "5")


def test_a_killed_node_is_replaced_and_a_late_one_helps(deploy: Deploy) -> None:
    run = deploy(**{"expert.steps": 3000})
    run.init()
    run.serve()
    for name in ("a", "b"):
        run.join(name)
        run.node(name)
    run.wait_phase("training")
    wait_for(lambda: sum(1 for n in run.glance()["nodes"] if n["unit"]) == 2, "both nodes to train")
    run.kill("a")
    run.join("late")
    run.node("late")
    status = run.wait_phase("finished")
    names = {node["node_id"]: node["name"] for node in status["nodes"]}
    assert {names[done["node_id"]] for done in status["experts_done"]} == {"b", "late"}


def test_a_killed_coordinator_goes_on_where_it_was(deploy: Deploy) -> None:
    run = deploy(**{"router.rounds": 12})
    run.init()
    run.serve()
    run.join("a")
    run.node("a")
    wait_for(lambda: run.glance()["round"] >= 3, "round 3")
    coordinator = run.children["coordinator"].pid
    run.kill("coordinator")
    wait_for(lambda: not processes_of(coordinator), "its worker to end with it")
    before = run.status()["round"]
    run.serve()
    status = run.wait_phase("finished")
    assert before >= 3
    assert len(status["routing"]) == 12


def test_ctrl_c_on_a_node_hands_its_unit_back_at_once(deploy: Deploy) -> None:
    run = deploy(**{"run.lease_s": 600.0, "expert.steps": 5000})
    run.init()
    run.serve()
    run.join("a")
    run.node("a")
    run.wait_phase("training")
    wait_for(lambda: run.glance()["units"]["leased"], "a unit in work")
    assert run.kill("a", signal.SIGINT) == 130
    assert run.status()["units"]["leased"] == 0
    assert run.kill("coordinator", signal.SIGINT) in (0, 130)


@pytest.mark.slow
def test_one_seed_model_travels_once_and_has_a_line_of_its_own(deploy: Deploy) -> None:
    run = deploy(**{"expert.init": "seed"})
    run_to_the_end(run, "a", "b")
    kinds = {row["kind"] for row in run.status()["bytes"]["rows"]}
    assert "seed" in kinds


@pytest.mark.slow
def test_experts_that_stay_home_give_a_mixture_without_them(deploy: Deploy) -> None:
    run = deploy(**{"expert.collect": "never"})
    run_to_the_end(run, "a", "b")
    status = run.status()
    assert status["evaluation"]["suffix_ppl"] > 1
    assert "weights" not in {row["kind"] for row in status["bytes"]["rows"]}


# ------------------------------------------------------------------------------ the ledger


@dataclass
class CountingProxy:
    """Passes bytes between a port and the coordinator's, and counts them both ways."""

    target: int
    port: int = field(default_factory=free_port)
    up: int = 0
    down: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # nobody serves yet
                client.close()
                continue
            for source, sink, name in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pump, args=(source, sink, name), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        while True:
            try:
                data = source.recv(65536)
                if not data:
                    break
                sink.sendall(data)
            except OSError:
                break
            setattr(self, name, getattr(self, name) + len(data))
        for end in (source, sink):
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_the_ledger_agrees_with_the_sockets(deploy: Deploy) -> None:
    """Nodes dial a counting proxy; what TLS, HTTP/2 and gRPC add is bounded and stated."""
    run = deploy(**{"run.lease_s": 60.0, "run.poll_s": 60.0})
    real_port = free_port()
    proxy = CountingProxy(real_port)
    run.init(run_port=proxy.port)
    addresses = json.loads((run.run / "addresses.json").read_text())
    token_run = good("smalltalk-coordinator", "invite", run.run)
    addresses["run"] = f"127.0.0.1:{real_port}"
    (run.run / "addresses.json").write_text(json.dumps(addresses))
    run.serve()
    good("smalltalk-node", "join", token_run, "--dir", run.folder / "a", "--name", "a")
    run.node("a")
    run.wait_phase("finished")
    assert run.children.pop("a").wait(60) == 0, run.log("a")
    status = run.status()
    proxy.close()
    rows = status["bytes"]["rows"]
    for direction, on_wire in (("up", proxy.up), ("down", proxy.down)):
        counted = sum(row["bytes"] for row in rows if row["direction"] == direction)
        messages = sum(row["messages"] for row in rows)
        overhead = on_wire - counted
        # Once a connection: the TLS handshake, about 2.5 kB each way. Each message: frame
        # headers of HTTP/2, TLS records, gRPC's headers, window updates and pings.
        assert 0 < overhead < 6_000 + 250 * messages, (direction, on_wire, counted, messages)
    # The formulas (docs/architecture.md, "What travels") and the stated overhead of a blob:
    # 20 bytes of block header and about 70 of digest, size, name and unit in its first part.
    sent = {(row["kind"], row["direction"]): row["bytes"] for row in rows}
    experts, rounds, chunk = 2, 3, 64
    scores = (rounds - 1) * experts * (2 * chunk + 90)
    assert sent["scores", "up"] == pytest.approx(scores, rel=0.1)
    size = sum(p.stat().st_size for p in (run.run / "mixture" / "routers").iterdir()) / experts
    assert sent["parameters", "up"] == pytest.approx(rounds * experts * (size + 90), rel=0.1)


# ---------------------------------------------------------------------------- bad input


def test_a_port_in_use_is_one_sentence(deploy: Deploy) -> None:
    run = deploy()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run.init(run_port=taken.getsockname()[1])
        done = command("smalltalk-coordinator", "serve", run.run)
    assert done.returncode == 4
    assert "can't be listened on" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_used_token_an_expired_one_and_a_foreign_one(deploy: Deploy, tmp_path: Path) -> None:
    run = deploy()
    run.init()
    run.serve()
    token = good("smalltalk-coordinator", "invite", run.run)
    good("smalltalk-node", "join", token, "--dir", tmp_path / "n1", "--name", "n1")
    again = command("smalltalk-node", "join", token, "--dir", tmp_path / "n2", "--name", "n2")
    assert again.returncode == 3
    assert "has been used" in again.stderr
    # Another authority at the same addresses: refused before anything is said.
    run.kill("coordinator", signal.SIGTERM)
    other = Deployment(tmp_path / "other", run.corpus, run.settings)
    other.folder.mkdir()
    other.init(run.run_port, run.enrol_port)
    try:
        other.serve()
        foreign = good("smalltalk-coordinator", "invite", run.run)
        refused = command("smalltalk-node", "join", foreign, "--dir", tmp_path / "n3")
    finally:
        other.kill("coordinator")
    assert refused.returncode in (3, 4)
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2


def test_a_second_coordinator_on_one_folder_is_refused(deploy: Deploy) -> None:
    run = deploy()
    run.init()
    run.serve()
    done = command("smalltalk-coordinator", "serve", run.run)
    assert done.returncode == 2
    assert "another coordinator is using" in done.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"router.roundz": 3}, "did you mean 'router.rounds'"),
        ({"run.experts": 65}, "router.chunk_sequences"),
        ({"sequence.prefix": 65}, "longer than sequence.length"),
        ({"sequence.length": 128}, "the corpus was prepared with 64"),
    ],
)
def test_a_configuration_that_can_not_work_is_one_sentence(
    deploy: Deploy, changes: dict[str, object], says: str
) -> None:
    run = deploy(**changes)
    done = command("smalltalk-coordinator", "init", run.run, "--corpus", run.corpus, *run.sets())
    assert done.returncode == 2
    assert says in done.stderr
    assert not run.run.exists()


def test_a_node_waits_for_a_coordinator_that_is_not_there_yet(deploy: Deploy) -> None:
    run = deploy()
    run.init()
    run.serve()
    run.join("a")
    run.kill("coordinator", signal.SIGTERM)
    run.node("a")
    wait_for(lambda: "Trying again" in run.log("a"), "the node to say so")
    assert run.children["a"].poll() is None
    run.serve()
    run.wait_phase("finished")


# -------------------------------------------------------------------------------- identity


def admin_status(run: Deployment, key: Path, certificate: Path, authority: Path) -> str:
    """Ask for the status with somebody's certificate; the gRPC status that comes back."""
    credentials = grpc.ssl_channel_credentials(
        authority.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    options = (("grpc.ssl_target_name_override", SERVER_NAME),)
    with grpc.secure_channel(f"127.0.0.1:{run.run_port}", credentials, options) as channel:
        try:
            pb_grpc.AdminStub(channel).Status(pb.StatusRequest(), timeout=10)
        except grpc.RpcError as error:
            name: str = error.code().name
            return name
    return "OK"


def test_admin_calls_need_the_operators_certificate(deploy: Deploy) -> None:
    run = deploy()
    run.init()
    run.serve()
    run.join("a")
    node, operator = run.folder / "a", run.run / "operator"
    authority = run.run / "authority" / "ca.pem"
    mine = (operator / "key.pem", operator / "cert.pem", authority)
    assert admin_status(run, *mine) == "OK"
    theirs = (node / "key.pem", node / "certificate.pem", authority)
    assert admin_status(run, *theirs) == "PERMISSION_DENIED"
