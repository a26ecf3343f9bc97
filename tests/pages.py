"""Blocks of the documents that need a stage of their own: each names the file of tests that takes it and runs it."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"^<!-- run by (\S+) -->\n```(?:python)?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def blocks(page: str, file: str) -> list[str]:
    """What stands in docs/PAGE under the lines `<!-- run by FILE -->`, in order; file: the caller's __file__."""
    mine = str(Path(file).relative_to(ROOT))
    return [code for runs_it, code in MARKED.findall((ROOT / "docs" / page).read_text()) if runs_it == mine]
