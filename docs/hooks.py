"""The format's pages and what benchmarks drew are shown with the rest; they stay where they are."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("spec/*.md", "spec/*.json", "spec/codecs/*.md", "spec/vectors/README.md", "benchmarks/results/plan.svg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_post_page(output: str, **_: object) -> str:
    """Give navigations of one name a number each: a screen reader lists them by name."""
    seen: Counter[str] = Counter()

    def numbered(found: re.Match[str]) -> str:
        seen[found[2].lower()] += 1
        times = seen[found[2].lower()]
        return f'{found[1]}{found[2]} {times}"' if times > 1 else found[0]

    return re.sub(r'(<nav\b[^>]*\baria-label=")([^"]*)"', numbered, output)
