"""The README as a page of its own, for the metadata of a wheel: without the repository around it, relative links lead
nowhere. They become absolute where pyproject.toml names the repository (`[project.urls] Repository`), else text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Named in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        url = metadata.get("urls", {}).get("Repository", "")
        metadata["readme"] = {"content-type": "text/markdown", "text": standalone(readme, url)}


def standalone(text: str, url: str = "") -> str:
    """Markdown with every relative link and picture made absolute below `url`; without one, links become their text
    and pictures go."""

    def replaced(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if not url:
            return "" if picture else words
        return f"{picture}[{words}]({url}/{'raw' if picture else 'blob'}/main/{target})"

    return LINK.sub(replaced, text)
