"""Every order that docs/simulator.md lists is held by a test that is there."""

import re
from pathlib import Path

HERE = Path(__file__).parent
LISTED = (HERE.parents[1] / "docs" / "simulator.md").read_text().partition("<!-- orders -->")[2]
ROWS = [line for line in LISTED.partition("<!-- end of orders -->")[0].splitlines() if "`test_" in line]


def test_every_order_names_a_section_and_a_test():
    tests = set(re.findall(r"^def (test_\w+)", "\n".join(f.read_text() for f in HERE.rglob("test_*.py")), re.M))
    assert len(ROWS) >= 16
    for row in ROWS:
        what, section, *_, named = row.strip("| ").split(" | ")
        assert what
        assert section
        assert named.strip("`") in tests, row
