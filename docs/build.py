"""Write the pages, and parts of pages, that are made from the code; `make docs` runs this.

A part stands between `<!-- from code: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

from smalltalk_fed.config.reference import markdown
from smalltalk_fed.core.phases import mermaid
from smalltalk_fed.wire import egress_page, limits_page

DOCS = Path(__file__).parent
PARTS = {"phases": f"```mermaid\n{mermaid()}\n```"}


def main() -> None:
    """Write all of them."""
    (DOCS / "configuration.md").write_text(markdown(), encoding="utf-8")
    (DOCS / "limits.md").write_text(limits_page.markdown(), encoding="utf-8")
    (DOCS / "egress.md").write_text(egress_page.markdown(), encoding="utf-8")
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name, part in PARTS.items():
            pattern = rf"(<!-- from code: {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, part=part: m[1] + part + "\n" + m[2], text, flags=re.S)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
