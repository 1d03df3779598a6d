"""The bundled text pack as a corpus, for benchmarks that compute in one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.packs import unpack_small
from smalltalk_fed.data.prepare import PrepareOptions, prepare


def pack_corpus(
    folder: Path,
    *,
    sequence_tokens: int = 256,
    vocabulary: int = 1024,
    domains: Sequence[str] = (),
    documents: int | None = None,
) -> TokenCorpus:
    """A corpus in `folder/corpus` (made once) of these domains, all by default.

    `documents`: take so many of each domain's training documents, and all held-out ones.
    """
    out = folder / "corpus"
    if not out.exists():
        pack = unpack_small(folder / "pack")
        inputs = []
        for path in sorted(pack.glob("*.jsonl")):
            if domains and path.stem not in domains:
                continue
            lines = path.read_text().splitlines()
            held = [line for line in lines if json.loads(line)["split"] != "train"]
            train = [line for line in lines if json.loads(line)["split"] == "train"]
            chosen = folder / path.name
            chosen.write_text("\n".join(train[:documents] + held) + "\n")
            inputs.append(chosen)
        prepare(
            PrepareOptions(
                inputs=tuple(inputs),
                out=out,
                sequence_tokens=sequence_tokens,
                vocabulary=vocabulary,
                label_field="domain",
                split_field="split",
                workers=1,
            )
        )
    return TokenCorpus.open(out)
