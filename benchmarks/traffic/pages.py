# SPDX-License-Identifier: GPL-3.0-or-later
"""Real web pages to load: those of the installed documentation packages, with what a browser loads for them.

Pure but for reading files. A page's sub-resources are what its HTML names and the server has: style sheets,
scripts, images, icons. What style sheets and scripts name in turn is left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

# name on the server -> Debian package (scripts/setup bench installs it), where it puts its pages
SITES = {
    "python": ("python3-doc", "/usr/share/doc/python3-doc/html"),
    "sqlite": ("sqlite3-doc", "/usr/share/doc/sqlite3"),
    "gimp": ("gimp-help-en", "/usr/share/gimp/2.0/help"),
}

# Tuning: pages of the weight of a small to middling page of today's web, each with more than its text.
LEAST_BYTES = 40_000
MOST_BYTES = 2_000_000
LEAST_RESOURCES = 2


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its path on the server, and how many bytes it and its sub-resources are on disk."""

    path: str
    resources: int
    size: int


class _Resources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        wanted: str | None = None
        if tag in ("img", "script", "embed", "source"):
            wanted = given.get("src")
        elif tag == "object":
            wanted = given.get("data")
        elif tag == "link":
            kinds = (given.get("rel") or "").lower().split()
            if "alternate" not in kinds and {"stylesheet", "icon"} & set(kinds):
                wanted = given.get("href")
        if wanted:
            self.found.append(wanted)


def resources_of(html: str, path: str) -> list[str]:
    """Return the paths on the same server of a page's sub-resources, each once, in the page's order."""
    parser = _Resources()
    parser.feed(html)
    parser.close()
    found: dict[str, None] = {}
    for reference in parser.found:
        try:
            parts = urlsplit(urldefrag(urljoin(f"http://here{path}", reference.strip())).url)
        except ValueError:
            continue
        if parts.scheme == "http" and parts.netloc == "here":
            found[parts.path] = None
    return list(found)


def file_of(roots: dict[str, Path], path: str) -> Path | None:
    """Return the file a server's path means; None if there is none."""
    site, _, rest = unquote(path).lstrip("/").partition("/")
    if site not in roots:
        return None
    file = roots[site] / rest
    return file if file.is_file() else None


def installed() -> dict[str, Path]:
    """Return each site's directory. Raises FileNotFoundError naming the package that is missing."""
    roots = {}
    for site, (package, place) in SITES.items():
        root = Path(place).resolve()
        if not root.is_dir():
            raise FileNotFoundError(package)
        roots[site] = root
    return roots


def survey(roots: dict[str, Path]) -> list[Page]:
    """Return every page that is heavy enough and not too heavy, in the order of the paths."""
    pages = []
    for site, root in roots.items():
        for file in sorted(root.rglob("*.html")):
            if file.is_symlink():
                continue
            path = f"/{site}/{file.relative_to(root).as_posix()}"
            parts = resources_of(file.read_text(encoding="utf-8", errors="replace"), path)
            files = [found for part in parts if (found := file_of(roots, part))]
            size = file.stat().st_size + sum(each.stat().st_size for each in files)
            if len(files) >= LEAST_RESOURCES and LEAST_BYTES <= size <= MOST_BYTES:
                pages.append(Page(path, len(files), size))
    return pages


def choose(pages: Sequence[Page], number: int, seed: int) -> list[Page]:
    """Choose pages by a seed, as evenly over the sites as they go."""
    shuffled = random.Random(seed).sample(list(pages), len(pages))
    by_site: dict[str, list[Page]] = {}
    for page in shuffled:
        by_site.setdefault(page.path.split("/")[1], []).append(page)
    chosen: list[Page] = []
    while len(chosen) < number and any(by_site.values()):
        chosen += [waiting.pop() for waiting in by_site.values() if waiting]
    return chosen[:number]
