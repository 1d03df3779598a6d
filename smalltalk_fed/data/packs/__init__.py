"""The text pack that comes with the product, for the demo and for tests.

`small.tar.xz` has 8.6 million characters in eight domains, one .jsonl file each, with
their sources and licences in NOTICE.md (here and in the archive: whoever passes the pack
on passes on its notice). This module unpacks it and checks every file; it reads no text.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tarfile
from pathlib import Path

from smalltalk_fed.errors import OurError, UserError

SMALL_PACK = Path(__file__).with_name("small.tar.xz")
NOTICE = Path(__file__).with_name("NOTICE.md")


def unpack_small(out: Path) -> Path:
    """Unpack the pack into the new folder `out`; returns the folder with its .jsonl files.

    A folder `out` that holds the whole pack already is left as it is.

    Raises:
        UserError: `out` holds something else, or can't be written.
        OurError: the pack that came with the product is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if out.is_dir() and _problem(out) is None:
            return out
        raise UserError(f"{out} already exists and is not the text pack; give a new folder.")
    partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        with tarfile.open(SMALL_PACK, "r:xz") as archive:
            archive.extractall(partial, filter="data")
        folder = partial / "small"
        problem = _problem(folder)
        if problem is not None:
            raise OurError(f"the text pack is damaged ({problem}); install smalltalk-fed again.")
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error}).") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _problem(folder: Path) -> str | None:
    """What is wrong with an unpacked pack, or None."""
    try:
        domains = json.loads((folder / "meta.json").read_bytes())["domains"]
        for entry in domains.values():
            digest = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
            if digest != entry["sha256"]:
                return f"{entry['file']} has another digest"
    except (OSError, ValueError, KeyError) as error:
        return repr(error)
    return None if (folder / NOTICE.name).is_file() else "its notice is missing"
