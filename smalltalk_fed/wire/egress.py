"""Every field that can leave a node: generated from the messages that it sends.

Rules: the rows come from the protobuf descriptors of the request messages, so that a field
which is added to one shows up here, and a field without a description is an error (a test
sees it first). Limits are those that the receiving end enforces (`values`); sizes of blobs
come from the run's manifest. Nothing else leaves: replies only come in, and no request has
room for the corpus, gradients, activations or optimizer states. An expert's answers leave as
token ids, where its owner serves it; an expert may repeat what it was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.silo_book import has_public_text, is_private
from smalltalk_fed.errors import OurError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import values

# Calls that a node makes, when, and what it sends.
CALLS: tuple[tuple[str, str, Descriptor], ...] = (
    ("Enrol", "once, at `join`", pb.EnrolRequest.DESCRIPTOR),
    ("Renew", "once in about 20 days", pb.RenewRequest.DESCRIPTOR),
    ("Explain", "when the coordinator does not answer, and by `doctor`",
     pb.ExplainRequest.DESCRIPTOR),
    ("Join", "at every start, and when the coordinator was restarted", pb.JoinRequest.DESCRIPTOR),
    ("Exchange", "when a unit is done, while one is in work, and to ask for the next",
     pb.ExchangeRequest.DESCRIPTOR),
    ("BlobState", "before each upload", pb.BlobStateRequest.DESCRIPTOR),
    ("PutBlob", "after a unit, its outputs; see the blobs below", pb.BlobPart.DESCRIPTOR),
    ("GetBlob", "before a unit, for its inputs", pb.GetBlobRequest.DESCRIPTOR),
    ("Leave", "when the program is stopped, at the end of its hours, and when a run needs more "
     "than this machine's owner allows", pb.LeaveRequest.DESCRIPTOR),
    ("Withdraw", "once, if its owner withdraws experts: `withdraw`",
     pb.WithdrawRequest.DESCRIPTOR),
    ("Serve", "only while its owner serves experts: `serve-experts`; what they answer to others' "
     "prompts", pb.ServeUp.DESCRIPTOR),
)  # fmt: skip

_REASON = f"at most {values.MAX_REASON_CHARS} characters"
_NAME = f"at most {values.MAX_NAME_CHARS} characters"
_SOFTWARE = f"at most {values.MAX_SOFTWARE_CHARS} characters"
_DIGEST = "32 bytes"
_COUNT = "at most 10 bytes"
_NUMBER = "8 bytes"
_UNIT = "the work unit's id, such as router_round/2/7"

# (message, field) -> (what it is, how large it gets). Messages inside messages have no size.
DESCRIPTIONS: dict[tuple[str, str], tuple[str, str]] = {
    ("EnrolRequest", "secret"): ("the join token's one-time secret", "16 bytes"),
    ("EnrolRequest", "certificate_request"): (
        "this node's public key and name, signed by the key", "about 250 bytes"),
    ("EnrolRequest", "name"): ("the machine's name, as given with --name", _NAME),
    ("RenewRequest", "certificate"): ("this node's old certificate", "about 450 bytes"),
    ("RenewRequest", "certificate_request"): ("as at Enrol", "about 250 bytes"),
    ("ExplainRequest", "certificate"): ("this node's certificate", "about 450 bytes"),
    ("JoinRequest", "incarnation"): ("a number that grows with every start; the start's time",
                                     _COUNT),
    ("JoinRequest", "protocol_version"): ("version of the protocol", _COUNT),
    ("JoinRequest", "signing_key"): ("public key that results are signed with", "32 bytes"),
    ("JoinRequest", "capabilities"): ("what this machine has", ""),
    ("JoinRequest", "seat"): ("in a private run: the seat that was given with --seat", _COUNT),
    ("JoinRequest", "share"): (
        "in a private run: who may have this node's experts, as given with --weights", _NAME),
    ("Capabilities", "device"): ("kind of device: cpu, cuda, mps", _SOFTWARE),
    ("Capabilities", "threads"): ("number of threads", _COUNT),
    ("Capabilities", "memory_bytes"): ("size of the machine's memory", _COUNT),
    ("Capabilities", "tokens_per_s"): ("speed of the last router round", _NUMBER),
    ("Capabilities", "corpus_digest"): (
        "SHA-256 of the corpus's manifest; in a private run keyed with a secret of this node, so "
        "that it tells whether the text is the same as before and nothing else", "64 characters"),
    ("Capabilities", "corpus_bytes"): ("size of the corpus", _COUNT),
    ("Capabilities", "train_sequences"): (
        "in a private run: how many sequences of text this node trains on", _COUNT),
    ("Capabilities", "heldout_sequences"): (
        "in a private run: how many sequences it holds out", _COUNT),
    ("Capabilities", "software"): ("versions of smalltalk-fed, Python and torch", _SOFTWARE),
    ("ExchangeRequest", "incarnation"): ("as at Join", _COUNT),
    ("ExchangeRequest", "working"): ("the unit in work", ""),
    ("ExchangeRequest", "finished"): ("the unit that is done", ""),
    ("ExchangeRequest", "failed"): ("the unit that could not be done", ""),
    ("ExchangeRequest", "wants_work"): ("whether the next unit is asked for", "1 byte"),
    ("ExchangeRequest", "collected"): (
        "the state of the expert in work, if the run collects it every N steps", ""),
    ("Working", "unit_id"): (_UNIT, _NAME),
    ("Working", "fraction"): ("part that is done, 0 to 1", _NUMBER),
    ("Working", "figures"): ("mean loss, step, tokens a second",
                             f"at most {values.MAX_FIGURES}"),
    ("Result", "unit_id"): (_UNIT, _NAME),
    ("Result", "outputs"): ("what was uploaded", f"at most {values.MAX_OUTPUTS}"),
    ("Result", "figures"): ("losses (sums, means and the curve), steps, counts of tokens and "
                            "sequences, seconds, tokens a second", f"at most {values.MAX_FIGURES}"),
    ("Result", "signature"): ("this node's signature over the result", "64 bytes"),
    ("Failure", "unit_id"): (_UNIT, _NAME),
    ("Failure", "reason"): ("the error as one sentence; may name a path on this machine", _REASON),
    ("Figure", "name"): ("the figure's name, one of those below", _NAME),
    ("Figure", "value"): ("one number", _NUMBER),
    ("BlobRef", "name"): ("which output", _NAME),
    ("BlobRef", "digest"): ("its SHA-256", _DIGEST),
    ("BlobRef", "size"): ("its size", _COUNT),
    ("BlobStateRequest", "digest"): ("SHA-256 of the output", _DIGEST),
    ("BlobStateRequest", "name"): ("which output", _NAME),
    ("BlobPart", "digest"): ("SHA-256 of the output", _DIGEST),
    ("BlobPart", "size"): ("size of the output", _COUNT),
    ("BlobPart", "offset"): ("where this upload goes on", _COUNT),
    ("BlobPart", "name"): ("which output", _NAME),
    ("BlobPart", "unit_id"): (_UNIT, _NAME),
    ("BlobPart", "data"): ("a part of the output's bytes", "256 KiB a part"),
    ("GetBlobRequest", "digest"): ("SHA-256 of the input", _DIGEST),
    ("GetBlobRequest", "offset"): ("where this download goes on", _COUNT),
    ("GetBlobRequest", "name"): ("which input", _NAME),
    ("LeaveRequest", "incarnation"): ("as at Join", _COUNT),
    ("LeaveRequest", "reason"): ("why this node goes", _REASON),
    ("WithdrawRequest", "experts"): ("numbers of the experts that are withdrawn", "2 bytes each"),
    ("WithdrawRequest", "reason"): ("what its owner gives as the reason", _REASON),
    ("ServeUp", "offer"): ("which experts may be asked", ""),
    ("ServeUp", "completion"): ("an expert's answer to a prompt", ""),
    ("ServeUp", "losses"): ("how well an expert knows a text that whoever asks has sent", ""),
    ("Losses", "number"): ("the text's number", _COUNT),
    ("Losses", "prefix_nll"): ("sum of losses over the prefixes of all its rows", _NUMBER),
    ("Losses", "suffix_nll"): ("sum of losses over the rest of all its rows", _NUMBER),
    ("Offer", "experts"): ("numbers of this node's experts", "2 bytes each"),
    ("Offer", "at_once"): ("prompts that are answered at a time", _COUNT),
    ("Completion", "number"): ("the prompt's number", _COUNT),
    ("Completion", "tokens"): (
        "the answer's tokens: text that the expert wrote, which may repeat what it was trained on",
        f"at most {values.MAX_ANSWER_TOKENS:,}, 1 to 4 bytes each"),
    ("Completion", "problem"): ("why there is no answer; may name a path on this machine", _REASON),
}  # fmt: skip

# Output name -> (after which units, what it is, its size where no manifest is at hand).
BLOBS: dict[str, tuple[str, str, str]] = {
    "parameters": ("router_round: every round", "parameters of one tiny router",
                   "4 bytes a parameter"),
    "scores": ("router_round: every round but the last",
               "one log-likelihood of each sequence's prefix, to 1/32 nat", "2 bytes a sequence"),
    "experts": ("shard: once for each slice of the run's corpus; in a private run that is the "
                "public text", "the expert's number for each sequence",
                "1 or 2 bytes a sequence"),
    "audit": ("audit: once", "log-likelihoods of a small sample of sequences under another "
              "node's router or expert, or that router trained again, to 1/32 nat",
              "2 bytes a score"),
    "router-N": ("silo_block, in a private run: every few rounds",
                 "parameters of the tiny router of this node's expert N, which is a language "
                 "model of the prefixes of this node's text", "4 bytes a parameter"),
    "counts": ("count, in a private run: after each silo_block, and some more at the end",
               "how many held-out sequences each router would win, below the run's floor withheld, "
               "above it rounded down", "4 bytes an expert"),
    "config": ("train_expert: once, if the run collects experts and the owner allows it",
               "shape of the expert, config.json", "about 1 KiB"),
    "weights": ("train_expert and train_seed: at the end, if the run collects experts (in a "
                "private run: if the owner allows it, too) or has a seed; every N steps, if the "
                "run collects so",
                "weights of the model", "4 bytes a parameter"),
}  # fmt: skip


# Figures that a node tells of a unit: name -> what it is. `N` stands for a number of steps.
FIGURES: dict[str, str] = {
    "loss": "mean loss since the last report, nats a token",
    "loss_first": "mean loss of the first step",
    "loss_last": "mean loss of the last steps",
    "loss_mean": "mean loss over all steps",
    "loss_at_N": "mean loss of the steps up to N; at most 40 of these",
    "step": "steps that are done",
    "from_step": "step from which this node went on",
    "steps": "steps in all",
    "tokens": "tokens trained on",
    "tokens_per_s": "speed",
    "seconds": "time that it took",
    "sequences": "sequences that were divided or evaluated; of a silo's held-out text so many of "
    "them as are a multiple of the run's floor",
    "elsewhere": "held-out sequences of a silo that another silo's expert wins, rounded down",
    "displaced_fraction": "part of a slice that balance sent to another expert than its best",
    "excess_nats": "what that cost",
    "prefix_nll": "sum of losses over the prefixes of these sequences",
    "suffix_nll": "sum of losses over the rest of these sequences",
    "prefix_tokens": "tokens that the first sum is over",
    "suffix_tokens": "tokens that the second sum is over",
    "epsilon": "what a silo's noised routers, or its noised counts, have cost it so far",
    "delta": "probability with which that may not hold",
}


# Outputs that leave in one regime alone.
_SHARED = frozenset({"parameters", "scores", "experts", "audit"})
_PRIVATE = frozenset({"router-N", "counts"})


def blob_kind(name: str) -> str:
    """The row of `BLOBS` that an output belongs to: `router-3` is a `router-N`."""
    return re.sub(r"^router-[0-9]{1,9}$", "router-N", name)


def figure_is_declared(name: str) -> bool:
    """Whether a node may tell a figure of this name."""
    return name in FIGURES or re.fullmatch(r"loss_at_[0-9]{1,12}", name) is not None


@dataclass(frozen=True)
class EgressRow:
    """One thing that can leave."""

    call: str
    when: str
    field: str
    what: str
    size: str


def egress_rows(manifest: RunManifest | None = None, weights: str = "public") -> list[EgressRow]:
    """Every field and blob that can leave a node, in the order of the conversation.

    With `manifest`, blobs have this run's limits. `weights`: who the owner lets have its experts
    in a private run.

    Raises:
        OurError: a field has no description.
    """
    rows = [
        EgressRow(call, when, path, what, size)
        for call, when, descriptor in CALLS
        for path, what, size in _fields(descriptor, "")
    ]
    return rows + list(_blob_rows(manifest, weights))


def _fields(descriptor: Descriptor, prefix: str) -> Iterator[tuple[str, str, str]]:
    for field in descriptor.fields:
        found = DESCRIPTIONS.get((descriptor.name, field.name))
        if found is None:
            raise OurError(
                f"the field '{field.name}' of {descriptor.name} can leave a node and has no "
                "description; this is a bug"
            )
        path = f"{prefix}{field.name}{'[]' if field.is_repeated else ''}"
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.is_repeated:
                yield path, *found
            yield from _fields(field.message_type, f"{path}.")
        else:
            yield path, *found


def _blob_rows(manifest: RunManifest | None, weights: str) -> Iterator[EgressRow]:
    for name, (when, what, size) in BLOBS.items():
        if manifest is not None:
            limit = size_limit(manifest, name)
            size = f"at most {limit:,} bytes in this run"
            if not may_leave(manifest, name, weights):
                size = "never in this run"
        yield EgressRow("PutBlob", when, f"data: {name}", what, size)


def may_leave(manifest: RunManifest, name: str, weights: str = "public") -> bool:
    """Whether blobs of a row of `BLOBS` ever leave a node in this run.

    Those of the other regime don't; weights and their config do if the run collects experts (and
    the owner allows it, in a private run) or has a seed model, that has no config of its own.
    """
    if name in (_SHARED if is_private(manifest) else _PRIVATE):
        return name == "experts" and has_public_text(manifest)
    expert = manifest.config.expert
    if name not in ("config", "weights"):
        return True
    if is_private(manifest):
        return expert.collects and "never" not in (expert.share, weights)
    return expert.collects or (name == "weights" and expert.init == "seed")
