"""Another server certificate, another address: without a restart, without new invitations."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from cryptography import x509
from smalltalk_coordinator.server_certificate import DAYS, RENEW_BEFORE_S
from support.served_run import (
    SOON_S,
    ServedRun,
    free_addresses,
    make_served_folder,
    outcome,
    run_methods,
    served_run,
)

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.certificates import SERVER_NAME, certificate_facts

DAY_S = 86400.0
BLOB_STATE = next(m for m in run_methods() if m.name == "BlobState")
WELCOME = "INVALID_ARGUMENT"  # an empty digest is refused after the certificate was accepted


def save(run: ServedRun, addresses: Addresses) -> None:
    """As `smalltalk-coordinator addresses` does, and the look that follows within seconds."""
    addresses.save(run.folder.path / "addresses.json")
    run.do(run.listeners.look())


def serials(run: ServedRun, addresses: Addresses) -> set[int]:
    shown = (run.shown_certificate(address) for pair in addresses.pairs for address in pair)
    return {certificate_facts(certificate).serial for certificate in shown}


def test_the_certificate_is_renewed_well_before_its_end_while_connections_stand(
    tmp_path: Path, tiny_corpus: TokenCorpus
) -> None:
    folder = make_served_folder(tmp_path / "run", tiny_corpus, free_addresses())
    # In the past, so that the certificate that comes later is good by everybody's clock.
    clock = ManualClock(time.time() - DAYS * DAY_S + RENEW_BEFORE_S - DAY_S)
    with served_run(folder, clock) as run, run.enrolment() as standing:
        (first,) = serials(run, folder.addresses)
        standing.Explain(pb.ExplainRequest(), timeout=SOON_S)
        clock.advance(DAYS * DAY_S - RENEW_BEFORE_S - DAY_S)
        assert serials(run, folder.addresses) == {first}
        clock.advance(2 * DAY_S)
        (second,) = serials(run, folder.addresses)
        assert second != first
        standing.Explain(pb.ExplainRequest(), timeout=SOON_S)
        guest = run.enrol()  # trusts the new certificate as it did the old one
        with run.channel(guest) as channel:
            assert outcome(channel, BLOB_STATE)[0] == WELCOME
        assert serials(run, folder.addresses) == {second}


def test_an_added_address_is_listened_at_and_in_the_certificate_and_told(
    served: ServedRun,
) -> None:
    guest, first = served.enrol(), served.folder.addresses
    run, enrolment = free_addresses().pairs[0]
    more = first.with_pair((run.replace("127.0.0.1", "localhost"), enrolment))
    with served.channel(guest) as standing:
        assert outcome(standing, BLOB_STATE)[0] == WELCOME
        save(served, more)
        assert outcome(standing, BLOB_STATE)[0] == WELCOME
    with served.channel(guest, run) as channel:
        assert outcome(channel, BLOB_STATE)[0] == WELCOME
    shown = x509.load_der_x509_certificate(served.shown_certificate(first.run))
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME, "localhost"]
    assert len(serials(served, Addresses.of([first.run, run], [first.enrolment, enrolment]))) == 1


def test_a_removed_address_is_closed_and_the_others_go_on(
    tmp_path: Path, tiny_corpus: TokenCorpus
) -> None:
    two = free_addresses(2)
    with served_run(make_served_folder(tmp_path / "run", tiny_corpus, two)) as run:
        guest = run.enrol()
        save(run, two.without_pair(two.pairs[0]))
        with run.channel(guest, two.runs[1]) as channel:
            assert outcome(channel, BLOB_STATE)[0] == WELCOME
        host, _, port = two.run.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)


def test_an_address_that_only_leads_here_is_told_and_not_listened_at(
    served: ServedRun, caplog: pytest.LogCaptureFixture
) -> None:
    first = served.folder.addresses
    # A public address that this machine does not have (RFC 5737), and one that is in use.
    save(served, first.with_pair(("203.0.113.1:7070", "203.0.113.1:7071")))
    (said,) = [r.getMessage() for r in caplog.records if "nodes are told" in r.getMessage()]
    assert said.startswith("nodes are told of 203.0.113.1:7070/203.0.113.1:7071, but ")
    guest = served.enrol()
    with served.channel(guest) as channel:
        assert outcome(channel, BLOB_STATE)[0] == WELCOME


def test_the_first_address_must_be_free(tmp_path: Path, tiny_corpus: TokenCorpus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        addresses = free_addresses()
        taken = Addresses(f"127.0.0.1:{other.getsockname()[1]}", addresses.enrolment)
        folder = make_served_folder(tmp_path / "run", tiny_corpus, taken)
        with pytest.raises(WorldError, match="can't be listened on"), served_run(folder):
            pass


@pytest.mark.parametrize("text", ["", "{}", '{"run": [], "enrolment": []}', '{"run": 1}'])
def test_a_damaged_file_changes_nothing_while_serving(
    served: ServedRun, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = served.folder.path / "addresses.json"
    before = json.loads(path.read_text())
    path.write_text(text)
    served.do(served.listeners.look())
    assert "the addresses stay as they were" in caplog.text
    served.enrol()
    path.write_text(json.dumps(before))
