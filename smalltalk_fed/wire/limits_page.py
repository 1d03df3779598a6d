"""docs/limits.md out of the limits themselves, so that no number is told wrong.

`python -m smalltalk_fed.wire.limits_page` prints it; `make docs` writes it; a test compares.
"""

from __future__ import annotations

from collections.abc import Sequence

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.wire import limits, values
from smalltalk_fed.wire.limits import MIB, NEWCOMERS, RunLimits

KIB = 1024
Row = tuple[str, str, str]

INTRODUCTION = """# Limits: what a coordinator lets its peers do

Made from the code by `make docs`. Nothing here is configured: what depends on a run follows from
its manifest. A node that does its work meets none of these, however fast it and its line are;
tests show it (`coordinator/test_callers_are_told_slowed_dropped`). Whoever exceeds one is told
which, with its number; a node of ours then waits and goes on, its unit is not lost.

A node that calls too often is **told** (`RESOURCE_EXHAUSTED`, the limit in the sentence, the
wait in the trailing metadata `{wait_key}`); if it goes on, it is **slowed**: its
refusals are kept back {hold_s:g} s each; after {drop_after} refusals it is **dropped**: not heard
for {drop_s:g} s, said in the log and in `status`, and its unit goes to another when its lease
ends. Then all is forgiven.
"""

OPEN_INTERNET = """## On the open internet

Before the TLS handshake a port can't tell a node from anybody else. What gRPC does about that is
above (time for the handshake, caps of connections); who opens connections without end can still
keep newcomers out by holding all of them, {handshake_s:g} s each, from many addresses. Nodes
that are connected go on. Put a packet filter in front of both ports; with nftables, for
addresses that open more than 10 new connections a second or hold more than 64 (raise both where
many nodes share one address):

```
table inet smalltalk {{
  set fast  {{ type ipv4_addr; size 65536; flags dynamic, timeout; timeout 1m; }}
  set many  {{ type ipv4_addr; size 65536; flags dynamic; }}
  chain input {{
    type filter hook input priority filter; policy accept;
    tcp dport {{ 7070, 7071 }} ct state new \\
      add @fast {{ ip saddr limit rate over 10/second burst 50 packets }} drop
    tcp dport {{ 7070, 7071 }} ct state new \\
      add @many {{ ip saddr ct count over 64 }} drop
  }}
}}
```

The same two rules with `ipv6_addr` and `ip6 saddr & ffff:ffff:ffff:ffff::` do it for IPv6. A
flood that fills the line itself is the hosting provider's to stop.

**Memory.** A connection costs up to {connection_kb} kB, one that never finishes its handshake
{half_open_kb} kB, so all that both ports accept cost up to {connections_mb:.0f} MB beyond what the
coordinator needs by itself (about 100 MB, 187 MB with a thousand working nodes): a machine of 1 GB
has room. (Closing thousands at once costs a part of that; it does not grow from one wave to the
next.) `coordinator/test_raw_socket_abuse` holds it against ten thousand connection attempts.
**Open files:** the process raises its soft limit
as far as the hard one allows (`LimitNOFILE=` of the service), and accepts fewer connections, with a
warning, where that is below {files}. Several pairs of addresses have such
caps each, and share the files.

## What is not limited

- Many hostile nodes together: each has the limits above for itself, all have the disk's and the
  ports'. {stalled} of them that upload and stand still hold up the uploads of others, for
  {stall_s:g} s each time. Invite whom you trust that far; `revoke` shuts a node out at its next
  call.
- One enrolled node may open as many connections as the port has; only the packet filter stops it.
- What it costs to refuse: a refused call takes about a tenth of a millisecond of one core.
"""

# Measured, and rounded up: docs/experiments.md. A test holds the first against ten thousand.
HALF_OPEN_KB = 60
CONNECTION_KB = 100


def markdown() -> str:
    """The whole page."""
    manifest = RunManifest(
        run_id="defaults", created_unix_s=0, config=RunConfig(), corpus_digest="0" * 64,
        tokenizer_sha256="0" * 64, vocabulary=32_000, train_sequences=4_100_000,
        heldout_sequences=4_000,
    )  # fmt: skip
    caps = limits.CONNECTIONS_MAX + limits.NEWCOMERS_MAX
    parts = [
        INTRODUCTION.format(
            wait_key=limits.WAIT_KEY, hold_s=limits.HOLD_S, drop_after=limits.DROP_AFTER,
            drop_s=limits.DROP_S,
        ),
        _table("Connections", _connections()),
        _table("Calls of one node", _calls(RunLimits.of(manifest))),
        _table("Calls on the enrolment port, by address", _newcomers()),
        _table("Transfers and disk", _transfers(RunLimits.of(manifest))),
        _table("Blobs", _blobs(manifest)),
        _table("Fields of messages", _fields()),
        OPEN_INTERNET.format(
            handshake_s=limits.HANDSHAKE_S, connection_kb=CONNECTION_KB,
            half_open_kb=HALF_OPEN_KB,
            connections_mb=caps * CONNECTION_KB / 1000, files=caps + 256,
            stalled=-(-(limits.UPLOADS_ASIDE + limits.UPLOAD_PLACES) // 3),
            stall_s=limits.UPLOAD_STALL_S,
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def _table(title: str, rows: Sequence[Row]) -> str:
    lines = [f"## {title}\n", "| what | limit | beyond it |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def _connections() -> list[Row]:
    streams = f"{limits.STREAMS_MAX}; enrolment port {limits.NEWCOMER_STREAMS_MAX}"
    return [
        ("connections of the nodes' port", f"{limits.CONNECTIONS_MAX:,}, or what open files allow",
         "closed at once"),
        ("connections of the enrolment port", f"{limits.NEWCOMERS_MAX:,}, or what open files allow",
         "closed at once"),
        ("TLS handshake and HTTP/2 settings", f"{limits.HANDSHAKE_S:g} s", "closed"),
        ("a connection without calls", f"{limits.IDLE_S:g} s", "closed; nodes dial again"),
        ("age of a connection to the enrolment port", f"{limits.NEWCOMER_AGE_S:g} s",
         f"closed, its calls {limits.NEWCOMER_GRACE_S:g} s later"),
        ("calls at a time on one connection", streams, "refused by HTTP/2"),
        ("headers of a call", _bytes(limits.HEADERS_BYTES_MAX), "the call or the connection ends"),
        ("a message", _bytes(limits.MESSAGE_BYTES_MAX), "`RESOURCE_EXHAUSTED`, unread"),
        ("compressed messages", "none", "`UNIMPLEMENTED`, not unpacked"),
        ("until a call's message is here", f"{limits.MESSAGE_S:g} s", "the call ends"),
    ]  # fmt: skip


def _calls(run: RunLimits) -> list[Row]:
    allowed = run.nodes
    at_a_time = ", ".join(f"{method} {most}" for method, most in allowed.in_flight.items())
    return [
        ("calls at once", f"200, and 4 for each expert and 16 more ({allowed.calls_burst:.0f} with "
         "the defaults); again so many when a result counts", "told, slowed, dropped"),
        ("calls a second after that", f"{allowed.calls_per_s:g}", "told, slowed, dropped"),
        ("calls that come all at once", f"{limits.TURNS_AT_ONCE:g}",
         f"take turns, {1000 * limits.TURN_S:g} ms apart"),
        ("`Join`, `Leave`, a result", f"count as {limits.COSTLY_CALL:g} calls more", ""),
        ("a call that is refused", f"counts as {limits.FAULT_CALLS:g} calls more", ""),
        ("refusals that are answered at once", f"{limits.TOLD_MAX}",
         f"kept back {limits.HOLD_S:g} s each"),
        ("refusals until the node is dropped", f"{limits.DROP_AFTER}; one is forgiven every "
         f"{limits.FORGIVE_S:g} s", f"not heard for {limits.DROP_S:g} s"),
        ("calls under way", f"{at_a_time}, others {allowed.in_flight_else}",
         "the oldest ends: `UNAVAILABLE`"),
        ("messages that wait for the core", f"{limits.INBOX_MAX:,} of all", "`UNAVAILABLE`"),
        ("prompts that wait for one node's experts", f"{limits.PROMPTS_WAITING_MAX}, of all nodes "
         f"{limits.PROMPTS_WAITING_IN_ALL_MAX}", "`RESOURCE_EXHAUSTED`"),
        ("until a prompt is answered", f"{limits.ANSWER_S:g} s", "`UNAVAILABLE`; the node is not "
         "asked any more until it connects again"),
    ]  # fmt: skip


def _newcomers() -> list[Row]:
    return [
        ("calls at once", f"{NEWCOMERS.calls_burst:.0f}", "told, slowed, dropped"),
        ("calls a second after that", f"{NEWCOMERS.calls_per_s:g}", "told, slowed, dropped"),
        ("calls under way", f"{NEWCOMERS.in_flight_else}", "the oldest ends"),
        ("addresses that are remembered", f"{NEWCOMERS.callers_max:,} (IPv6: networks of 64 bits)",
         "the one heard least recently is forgotten"),
    ]  # fmt: skip


def _transfers(run: RunLimits) -> list[Row]:
    nodes, disk = run.nodes, run.disk
    least, full_s = _bytes(int(limits.BYTES_LEAST)), f"{limits.BUDGET_S:g} s"
    return [
        ("bytes up of one node", f"twice what a unit may bring, at least {least} "
         f"({_bytes(int(nodes.bytes_up))}), at any speed; again when a result counts, or in "
         f"{full_s}", "paced, never refused"),
        ("bytes down of one node", f"twice what a unit may need, at least {least} "
         f"({_bytes(int(nodes.bytes_down))}), likewise", "paced, never refused"),
        ("uploads at full speed", f"{limits.UPLOAD_PLACES} of all nodes, one of each",
         "wait, unread"),
        ("uploads that wait for their lines", f"{limits.UPLOADS_ASIDE} of all nodes",
         "keep their places"),
        ("an upload without a byte", f"{limits.UPLOAD_STALL_S:g} s", "ends; goes on later"),
        ("uploads that no accepted result names, of one node", f"{disk.node_blobs} blobs, twice "
         f"what a unit may bring ({_bytes(disk.node_bytes)})", "its oldest are dropped"),
        ("the same of all nodes", "what a unit may bring for each expert, each copy of its unit, "
         f"and {limits.LOOSE_BLOBS_MAX} more ({_bytes(disk.total_bytes)})",
         "the oldest of the node that has most are dropped"),
        ("their age", f"{disk.kept_s / 86400:g} days", "dropped"),
        ("free disk that uploads leave", f"{_bytes(limits.DISK_RESERVE_BYTES)}, or 5 % of a small "
         "disk", "`UNAVAILABLE`; nodes wait"),
        ("what may be uploaded", "outputs of units of the present phase, or of finished ones",
         "`FAILED_PRECONDITION`"),
    ]  # fmt: skip


def _blobs(manifest: RunManifest) -> list[Row]:
    formula = {
        "parameters": "4 bytes a parameter of the router, and 1 MiB",
        "scores": "2 bytes a sequence of a chunk, and 64",
        "experts": "2 bytes a sequence of a slice, and 64",
        "audit": "2 bytes a score of the sample, and 64",
        "counts": "4 bytes an expert, and 64",
        "config": "64 KiB",
        "weights": "4 bytes a parameter of the expert, and 1 MiB, or `expert.weights_bytes_max`",
    }
    return [
        (f"`{name}`", f"{what} ({_bytes(size_limit(manifest, name))})", "`RESOURCE_EXHAUSTED`")
        for name, what in formula.items()
    ]


def _fields() -> list[Row]:
    large, odd = "`RESOURCE_EXHAUSTED`", "`INVALID_ARGUMENT`"
    return [
        ("a reason", f"{values.MAX_REASON_CHARS} characters", large),
        ("a name, a unit's id", f"{values.MAX_NAME_CHARS} characters", large),
        ("device, software", f"{values.MAX_SOFTWARE_CHARS} characters", large),
        ("figures of a message", f"{values.MAX_FIGURES}, finite", large),
        ("outputs of a result", f"{values.MAX_OUTPUTS}, each of another name", large),
        ("inputs of a unit", f"{values.MAX_INPUTS:,}", large),
        ("the manifest", _bytes(values.MAX_MANIFEST_BYTES), large),
        ("units that a node gives back", f"{values.MAX_RELEASED}", large),
        ("a prompt", f"{values.MAX_PROMPT_TOKENS:,} tokens", large),
        ("its answer", f"{values.MAX_ANSWER_TOKENS:,} tokens", large),
        ("a count", f"{values.MAX_INTEGER:,}", large),
        ("a time", f"{values.MAX_SECONDS:g} s", odd),
        ("a digest, a key, a signature", f"{values.DIGEST_BYTES}, {values.KEY_BYTES}, "
         f"{values.SIGNATURE_BYTES} bytes, no more and no less", odd),
    ]  # fmt: skip


def _bytes(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


if __name__ == "__main__":
    print(markdown(), end="")
