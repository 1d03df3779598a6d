from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("secret", "certificate_request", "name")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    certificate_request: bytes
    name: str
    def __init__(self, secret: _Optional[bytes] = ..., certificate_request: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("certificate", "certificate_request")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    certificate_request: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., certificate_request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("node_id", "certificate")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    certificate: bytes
    def __init__(self, node_id: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("reason", "welcome", "now")
    REASON_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    reason: str
    welcome: bool
    now: float
    def __init__(self, reason: _Optional[str] = ..., welcome: bool = ..., now: _Optional[float] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("device", "threads", "memory_bytes", "tokens_per_s", "corpus_digest", "corpus_bytes", "software", "train_sequences", "heldout_sequences")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CORPUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CORPUS_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    device: str
    threads: int
    memory_bytes: int
    tokens_per_s: float
    corpus_digest: str
    corpus_bytes: int
    software: str
    train_sequences: int
    heldout_sequences: int
    def __init__(self, device: _Optional[str] = ..., threads: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., corpus_digest: _Optional[str] = ..., corpus_bytes: _Optional[int] = ..., software: _Optional[str] = ..., train_sequences: _Optional[int] = ..., heldout_sequences: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("incarnation", "protocol_version", "signing_key", "capabilities", "seat", "share")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    SEAT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    protocol_version: int
    signing_key: bytes
    capabilities: Capabilities
    seat: int
    share: str
    def __init__(self, incarnation: _Optional[int] = ..., protocol_version: _Optional[int] = ..., signing_key: _Optional[bytes] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., seat: _Optional[int] = ..., share: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("node_id", "manifest", "manifest_signature", "coordinator_key", "reason", "run_addresses", "enrolment_addresses")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUN_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ENROLMENT_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    manifest: bytes
    manifest_signature: bytes
    coordinator_key: bytes
    reason: str
    run_addresses: _containers.RepeatedScalarFieldContainer[str]
    enrolment_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node_id: _Optional[str] = ..., manifest: _Optional[bytes] = ..., manifest_signature: _Optional[bytes] = ..., coordinator_key: _Optional[bytes] = ..., reason: _Optional[str] = ..., run_addresses: _Optional[_Iterable[str]] = ..., enrolment_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class BlobRef(_message.Message):
    __slots__ = ("name", "digest", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    size: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Unit(_message.Message):
    __slots__ = ("unit_id", "inputs", "start_step", "weights", "sample", "prices", "redo", "withdrawn")
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    REDO_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    unit_id: str
    inputs: _containers.RepeatedCompositeFieldContainer[BlobRef]
    start_step: int
    weights: _containers.RepeatedScalarFieldContainer[float]
    sample: int
    prices: _containers.RepeatedScalarFieldContainer[float]
    redo: bool
    withdrawn: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, unit_id: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[BlobRef, _Mapping]]] = ..., start_step: _Optional[int] = ..., weights: _Optional[_Iterable[float]] = ..., sample: _Optional[int] = ..., prices: _Optional[_Iterable[float]] = ..., redo: bool = ..., withdrawn: _Optional[_Iterable[int]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("unit_id", "outputs", "figures", "signature")
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    unit_id: str
    outputs: _containers.RepeatedCompositeFieldContainer[BlobRef]
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    signature: bytes
    def __init__(self, unit_id: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[BlobRef, _Mapping]]] = ..., figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Working(_message.Message):
    __slots__ = ("unit_id", "fraction", "figures")
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    unit_id: str
    fraction: float
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    def __init__(self, unit_id: _Optional[str] = ..., fraction: _Optional[float] = ..., figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("unit_id", "reason")
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    unit_id: str
    reason: str
    def __init__(self, unit_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("incarnation", "working", "finished", "failed", "wants_work", "collected")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WANTS_WORK_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    working: Working
    finished: Result
    failed: Failure
    wants_work: bool
    collected: Result
    def __init__(self, incarnation: _Optional[int] = ..., working: _Optional[_Union[Working, _Mapping]] = ..., finished: _Optional[_Union[Result, _Mapping]] = ..., failed: _Optional[_Union[Failure, _Mapping]] = ..., wants_work: bool = ..., collected: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class ExchangeReply(_message.Message):
    __slots__ = ("reason", "accepted", "cancel", "unit", "stop", "heartbeat_s", "wait_s", "failed", "collected", "unit_signature")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    UNIT_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    accepted: str
    cancel: str
    unit: Unit
    stop: bool
    heartbeat_s: float
    wait_s: float
    failed: bool
    collected: int
    unit_signature: bytes
    def __init__(self, reason: _Optional[str] = ..., accepted: _Optional[str] = ..., cancel: _Optional[str] = ..., unit: _Optional[_Union[Unit, _Mapping]] = ..., stop: bool = ..., heartbeat_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., failed: bool = ..., collected: _Optional[int] = ..., unit_signature: _Optional[bytes] = ...) -> None: ...

class BlobStateRequest(_message.Message):
    __slots__ = ("digest", "name")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    name: str
    def __init__(self, digest: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class BlobStateReply(_message.Message):
    __slots__ = ("received", "complete")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    received: int
    complete: bool
    def __init__(self, received: _Optional[int] = ..., complete: bool = ...) -> None: ...

class BlobPart(_message.Message):
    __slots__ = ("digest", "size", "offset", "name", "unit_id", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    offset: int
    name: str
    unit_id: str
    data: bytes
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., name: _Optional[str] = ..., unit_id: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetBlobRequest(_message.Message):
    __slots__ = ("digest", "offset", "name")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    name: str
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("incarnation", "reason")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    reason: str
    def __init__(self, incarnation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, released: _Optional[_Iterable[str]] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("experts", "reason")
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experts: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, experts: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class WithdrawReply(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ServeUp(_message.Message):
    __slots__ = ("offer", "completion", "losses")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    completion: Completion
    losses: Losses
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., completion: _Optional[_Union[Completion, _Mapping]] = ..., losses: _Optional[_Union[Losses, _Mapping]] = ...) -> None: ...

class ServeDown(_message.Message):
    __slots__ = ("taken", "prompt", "text")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    taken: Taken
    prompt: Prompt
    text: Text
    def __init__(self, taken: _Optional[_Union[Taken, _Mapping]] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., text: _Optional[_Union[Text, _Mapping]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("experts", "at_once")
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    experts: _containers.RepeatedScalarFieldContainer[int]
    at_once: int
    def __init__(self, experts: _Optional[_Iterable[int]] = ..., at_once: _Optional[int] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("number", "expert", "tokens", "tokens_max", "temperature", "top_p", "seed", "end")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    number: int
    expert: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    tokens_max: int
    temperature: float
    top_p: float
    seed: int
    end: int
    def __init__(self, number: _Optional[int] = ..., expert: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., tokens_max: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("number", "tokens", "problem")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    number: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    problem: str
    def __init__(self, number: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., problem: _Optional[str] = ...) -> None: ...

class Text(_message.Message):
    __slots__ = ("number", "expert", "tokens", "sequence_tokens", "prefix_tokens")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    number: int
    expert: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    sequence_tokens: int
    prefix_tokens: int
    def __init__(self, number: _Optional[int] = ..., expert: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., sequence_tokens: _Optional[int] = ..., prefix_tokens: _Optional[int] = ...) -> None: ...

class Losses(_message.Message):
    __slots__ = ("number", "prefix_nll", "suffix_nll")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_NLL_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_NLL_FIELD_NUMBER: _ClassVar[int]
    number: int
    prefix_nll: float
    suffix_nll: float
    def __init__(self, number: _Optional[int] = ..., prefix_nll: _Optional[float] = ..., suffix_nll: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("secret_sha256", "expires_at", "uses", "name")
    SECRET_SHA256_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    secret_sha256: bytes
    expires_at: float
    uses: int
    name: str
    def __init__(self, secret_sha256: _Optional[bytes] = ..., expires_at: _Optional[float] = ..., uses: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class CancelInviteRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    def __init__(self, prefix: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("node_id", "reason")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    reason: str
    def __init__(self, node_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReadmitRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TakeOutRequest(_message.Message):
    __slots__ = ("experts", "node_id", "reason")
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experts: _containers.RepeatedScalarFieldContainer[int]
    node_id: str
    reason: str
    def __init__(self, experts: _Optional[_Iterable[int]] = ..., node_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class MeasureReply(_message.Message):
    __slots__ = ("node_id", "node_name", "prefix_nll", "suffix_nll")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    PREFIX_NLL_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_NLL_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    node_name: str
    prefix_nll: float
    suffix_nll: float
    def __init__(self, node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., prefix_nll: _Optional[float] = ..., suffix_nll: _Optional[float] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("node_id", "node_name", "tokens")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    node_name: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class AdminReply(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
