"""Digests and targets that are paths in disguise lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.local_run import make_run_folder
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.errors import Malformed, UserError
from smalltalk_fed.host.backup import backup
from smalltalk_fed.host.blobs import BlobStore

BAD = ("", "..", "../../secret", "/etc/passwd", "A" * 64, "g" * 64, "a" * 63, "a" * 64 + "\n")


@pytest.mark.parametrize("digest", BAD)
@pytest.mark.parametrize(
    "use",
    [
        BlobStore.path,
        BlobStore.has,
        BlobStore.size,
        BlobStore.get,
        BlobStore.verify,
        BlobStore.received,
        BlobStore.drop,
        BlobStore.need_file,
        lambda store, digest: store.upload(digest, 3, 9),
        lambda store, digest: list(store.parts(digest, 0)),
    ],
)
def test_only_a_digest_names_a_blob(
    use: Callable[[BlobStore, str], object], digest: str, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path / "blobs")
    with pytest.raises(Malformed, match="64 hexadecimal digits"):
        use(store, digest)
    assert [path.name for path in tmp_path.rglob("*")] == ["blobs", "uploads"]


@pytest.mark.parametrize("name", ["link", "link/copy", "other/../link/copy", "run/../run/copy"])
def test_no_link_or_detour_leads_a_backup_into_the_run_folder(tmp_path: Path, name: str) -> None:
    run = make_run_folder(tmp_path / "run", write_tiny_corpus(tmp_path / "corpus"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "other").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"inside the run folder|is not empty"):
        backup(run, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
