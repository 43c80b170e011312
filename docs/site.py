"""What mkdocs.yml cannot say: pages that lie outside of docs/, and links that must lead there on the site as well."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PAGES = {
    "index.md": "Start",
    "your-own.md": "Your own",
    "report.md": "Report",
    "proof.md": "Proof",
    "hand-over.md": "Hand-over",
    "scaling.md": "Scaling",
    "method.md": "Method",
    "attacks.md": "Attacks",
    "glossary.md": "Glossary",
}
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Set the order of the pages; one that has no place yet comes after the others."""
    decisions = [f"decisions/{path.name}" for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    rest = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in PAGES]
    more = {"Benchmarks": "benchmarks.md", "Contributing": "contributing.md", "Changelog": "changelog.md"}
    config.nav = [
        *({title: page} for page, title in PAGES.items()),
        *rest,
        {"Decisions": [{"Overview": "decisions/index.md"}, *decisions]},
        {"More": [{title: page} for title, page in more.items()]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere, and the list of decisions."""
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    titles = [
        f"- [{path.read_text('utf-8').splitlines()[0].lstrip('# ')}]({path.name})"
        for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))
    ]
    text = "# Decisions\n\nWhere we differ from the paper or from the obvious, and what was measured.\n\n"
    files.append(File.generated(config, "decisions/index.md", content=text + "\n".join(titles) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links from file to file lead from page to page; source files are named without a link."""
    source = next((file for file, name in BESIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def rewritten(link: re.Match[str]) -> str:
        text, target, anchor = link.group(1), link.group(2), link.group(3) or ""
        if not target or ":" in target:
            return link.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = BESIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is None:
            return text
        if place == "decisions":
            place = "decisions/index.md"
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(rewritten, markdown)
