"""What a person reads at the end: a line for each case, and a sentence with the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .watch import Row

__all__ = ["WRONG", "sentence", "table"]

WRONG = ("wrong", "hang", "crash")
DETAIL = 400  # characters of it in the table; the JSON lines have all


def table(rows: Sequence[Row]) -> str:
    """A line a case: status, the worst error relative to what is allowed, seconds, name; under it what is not right."""
    lines = ["status   of allowed  seconds  case"]
    for row in rows:
        worst = _worst(row)
        lines.append(f"{row['status']:8} {worst:>10}  {row['seconds']:7.2f}  {row['case']}")
        if row["detail"]:
            lines.append(f"    {_cut(row['detail'])}")
    return "\n".join(lines)


def sentence(rows: Sequence[Row], seconds: float) -> str:
    """How many of the cases are right, wrong and so on, and where."""
    counts = Counter(row["status"] for row in rows)
    order = ("right", *WRONG, "missing", "skipped")
    found = ", ".join(f"{counts[status]} {status}" for status in order if counts[status] or status == "right")
    where = next((row["gpu"] for row in rows if row["gpu"]), "no GPU")
    return f"{len(rows)} cases on {where}: {found}, in {seconds:.0f} s."


def _worst(row: Row) -> str:
    ratios = [error / row["allowed"][name] for name, error in row["error"].items()]
    if any(ratio != ratio for ratio in ratios):
        return "NaN"
    return f"{max(ratios):.2f}" if ratios else ""


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= DETAIL else f"{text[:DETAIL]} ..."
