"""docs/egress.md out of the declarations that encode messages, so that no field is left out.

`make docs` writes it; a test compares. The rows are `egress`'s; here they become a page.
"""

from __future__ import annotations

from collections.abc import Iterable

from smalltalk_fed.wire.egress import FIGURES, EgressRow, egress_rows

INTRODUCTION = """# What can leave a node

Made from the code by `make docs`: the rows come from the very messages that a node encodes, and
a test fails when a message has a field that is not in here. This is all of it; a node sends
nothing to anybody but the coordinator of its join token, at that token's addresses and those that
the coordinator has told since, and to that one only what follows. No text of the corpus, no tokens
of it, no gradients, no activations, no optimizer states.

One thing is words: what an expert answers to a prompt, and only while its owner lets it
(`smalltalk-node serve-experts`). An expert is a language model of what it was trained on, and may
repeat some of it to whoever asks.

`smalltalk-node --explain-egress --dir DIR` prints the same with the limits of the run that the
node has joined. `smalltalk-node run --record-egress FILE` writes down every message before it is
encrypted, byte for byte, and `smalltalk-node egress FILE` holds them against this list: each
must be one of these requests, with no byte that its fields don't account for, and each blob one
of those below, within its size; `--find TEXT` looks for a text of yours in all that left.

In the regime `shared` every node can read the one corpus, so that scores and ids tell nobody
anything about text that they don't have. In the regime `private` every node has text of its own:
then no scores and no ids leave, but router parameters, counts, and sums over many sequences. A
router is a small language model of the prefixes of its node's text, and whoever has it can ask it
what it finds likely: docs/threat-model.md. Weights of experts leave only as far as both the run
(`expert.share`) and the node's owner (`--weights`, `never` unless it is given) allow.
"""

WORDS_IN_TEXTS = """## Fields that hold words

`reason` of a failure is an error's sentence and may name a path on this machine, as may `problem`
of an answer that could not be given; that of leaving may name its owner's limit, that of a
withdrawal is what its owner gave; `software` are versions; `name` is what was given with `--name`
(the host's name if nothing was). `tokens` of an answer stand for an expert's words. Everything
else is numbers, digests, signatures, and names that this program itself fixes.

## Around the messages

The look-up of the coordinator's name, if its address is one; the TLS handshake, with the server's
name in clear (`smalltalk-coordinator` for every run) and this node's certificate encrypted (its
id in the run, and its public key); HTTP/2's headers, with the call's name and gRPC's version.
"""


def markdown() -> str:
    """The whole page."""
    parts, rows = [INTRODUCTION], egress_rows()
    calls: dict[str, list[EgressRow]] = {}
    for row in rows:
        if not row.field.startswith("data: "):
            calls.setdefault(row.call, []).append(row)
    for call, of_call in calls.items():
        parts.append(f"## {call}\n\nSent {of_call[0].when}.\n")
        parts.append(
            _table(("field", "what", "size"), [(r.field, r.what, r.size) for r in of_call])
        )
    parts.append("## Blobs\n\nOutputs of work units; the `data` of PutBlob, in parts.\n")
    blobs = [
        (row.field.removeprefix("data: "), row.what, row.when, row.size)
        for row in rows
        if row.field.startswith("data: ")
    ]
    parts.append(_table(("blob", "what", "when", "size"), blobs))
    parts.append("## Figures\n\nNumbers that are told of a unit, 8 bytes each.\n")
    parts.append(_table(("figure", "what"), list(FIGURES.items())))
    parts.append(WORDS_IN_TEXTS)
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [f"| `{name}` | " + " | ".join(rest) + " |" for name, *rest in rows]
    return "\n".join(lines) + "\n"
