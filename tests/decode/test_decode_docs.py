"""What docs/decode.md says of the costs is what the profile found."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "decode.md").read_text()
ROWS = json.loads((ROOT / "benchmarks" / "results" / "decode_profile.json").read_text())["rows"]
KINDS = {"bf16, fp16": "pieces of 64;", "e4m3, e5m2": "e4m3 cache, scaled;", "int8": "int8 cache, scaled;"}
KINDS["int8, scales of tokens"] = "token_scales;"


def test_the_table_of_slots_is_true_and_memory_needs_more():
    said = re.findall(r"^\| (bf16, fp16|e4m3, e5m2|int8.*?) \| ([\d |]+) \| (\d+) \|$", TEXT, re.MULTILINE)
    assert [kind for kind, _, _ in said] == list(KINDS)
    for kind, slots, memory in said:
        found = [row for row in ROWS if "head_dim 128," in row["kernel"] and KINDS[kind] in row["kernel"]]
        assert [row["slots"] for row in found] == list(map(int, re.findall(r"\d+", slots)))
        assert {row["cycles of memory"] for row in found} == {int(memory)}
    assert all(max(row["slots"], row["tensor cycles"]) < row["cycles of memory"] for row in ROWS)
    assert all(row["spilled"] == row["warnings"] == 0 for row in ROWS)
