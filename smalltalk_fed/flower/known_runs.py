"""What a node remembers of the runs that it was asked into: `flower-runs.json` in its folder.

Rules: a run's coordinator is known by the key that this node saw first; the tokens that it took
part with in a private run are those that it works on, until it is asked again who it is: a text
that changes meanwhile is another silo's, and no turn is done on it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, UserError
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.secret_files import write_secret
from smalltalk_fed.worksite.corpora import signed_manifest
from smalltalk_fed.worksite.identity import NodeFolder

FILE = "flower-runs.json"


@dataclass(frozen=True)
class KnownRun:
    """`key`: the coordinator's, in hex. `text`: folder of the silo's tokens, and their digest."""

    key: str
    text: str = ""
    text_digest: str = ""


class KnownRuns:
    """Of one node's folder."""

    def __init__(self, folder: NodeFolder) -> None:
        """Raises UserError: the file is damaged."""
        self._path = folder.file(FILE)
        try:
            found = json.loads(self._path.read_text()) if self._path.exists() else {}
            self._runs = {str(run_id): KnownRun(**known) for run_id, known in found.items()}
        except (AttributeError, RecursionError, TypeError, ValueError):
            raise UserError(f"{self._path} is damaged; name a new folder for this node.") from None

    def manifest(self, welcome: convert.Welcome) -> RunManifest:
        """The run's manifest, signed by the key that this node saw first for this run.

        Raises:
            Unauthenticated, Malformed: it is not.
        """
        run_id = RunManifest.from_bytes(welcome.manifest).run_id
        known = self._runs.get(run_id)
        manifest = signed_manifest(welcome, known.key if known else "")
        if known is None:
            self._keep(run_id, KnownRun(welcome.coordinator_key.hex()))
        return manifest

    def take_part_with(self, manifest: RunManifest, corpus: TokenCorpus) -> None:
        """Remember a silo's tokens in a run whose `manifest` is known."""
        known = self._runs[manifest.run_id]
        text = str(corpus.folder.absolute())
        self._keep(manifest.run_id, replace(known, text=text, text_digest=corpus.digest))

    def text(self, manifest: RunManifest) -> TokenCorpus:
        """The tokens that this node takes part with in a private run.

        Raises:
            DataError: there are none, or they are others by now.
        """
        known = self._runs[manifest.run_id]
        if not known.text:
            raise DataError("this node has not said yet which text it takes part with.")
        corpus = TokenCorpus.open(Path(known.text))
        if corpus.digest != known.text_digest:
            raise DataError("this node's text is another than that which it takes part with.")
        return corpus

    def _keep(self, run_id: str, known: KnownRun) -> None:
        self._runs[run_id] = known
        found = {name: asdict(run) for name, run in self._runs.items()}
        write_secret(self._path, json.dumps(found, indent=1, sort_keys=True).encode() + b"\n")
