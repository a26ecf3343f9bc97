"""What docs/backward.md says of the tiles is what the code does."""

import re
from pathlib import Path

from cute_attn.bwd.config import default_tile, shared_memory_bytes
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec

TEXT = (Path(__file__).parents[2] / "docs" / "backward.md").read_text()


def test_the_table_of_tiles_is_true():
    rows = re.findall(r"^\| (\d+)(?: \(v (\d+)\))? \| (\d+) \| (\d), (\d) \| (\d+) KiB \|", TEXT, re.MULTILINE)
    said = {(int(d), int(v or d)): tuple(map(int, numbers)) for d, v, *numbers in rows}
    done = {}
    for dims in HEAD_DIMS:
        tile = default_tile(*dims)
        kibibytes = shared_memory_bytes(BackwardSpec(head_dim=dims[0], head_dim_v=dims[1], tile=tile)) // 1024
        done[dims] = (tile.n, tile.q_stages, tile.do_stages, kibibytes)
    assert said == done
