"""What docs/forward.md says of the tiles is what the code does."""

import re
from pathlib import Path

from cute_attn.fwd.config import default_tile, fragment_registers, out_shares_queries, shared_memory_bytes
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.forward import ForwardSpec

TEXT = (Path(__file__).parents[2] / "docs" / "forward.md").read_text()


def test_the_table_of_tiles_is_true():
    rows = re.findall(
        r"^\| (\d+)(?: \(v (\d+)\))? \| (\d+) x (\d+) \| (\d+) \| (\d+) KiB \| (.*)\|$", TEXT, re.MULTILINE
    )
    said = {
        (int(d), int(v or d)): (*map(int, numbers), "memory of Q" in why or "likewise" in why)
        for d, v, *numbers, why in rows
    }
    done = {}
    for dims in HEAD_DIMS:
        spec = ForwardSpec(head_dim=dims[0], head_dim_v=dims[1], tile=default_tile(*dims))
        numbers = spec.tile.m, spec.tile.n, fragment_registers(spec), shared_memory_bytes(spec) // 1024
        done[dims] = (*numbers, out_shares_queries(spec))
    assert said == done
