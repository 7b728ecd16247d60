"""Hooks of MkDocs: files outside docs/ that the pages link to become part of the site, README.md as its first page."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "benchmarks/results/*.png", "examples/*.py"]


def on_files(files: Files, *, config: Any) -> None:
    """Add the files outside docs/, at their paths from the root of the repository."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Change links between docs/ and the root of the repository: in the site both are one folder."""
    return re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)
