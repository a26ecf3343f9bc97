"""score_mods by name with what they capture, and what flex_attention must give for them, dense and in fp64."""

import functools

import torch
import torch.nn.functional as F

LONGEST = 300


class Captured:
    """What the mods below read, for up to LONGEST queries and keys, made anew for a test."""

    def __init__(self, heads, batch, dtype=torch.float64):
        made = functools.partial(torch.randn, dtype=dtype, requires_grad=True)
        self.distance = made(heads, 2 * LONGEST)
        self.by_key = made(batch, LONGEST)
        self.by_row = made(LONGEST)
        self.by_head = made(heads)
        self.gain = made(())
        self.unread = made(3)

    def leaves(self):
        return [x for x in vars(self).values() if isinstance(x, torch.Tensor)]


def mods(c):
    """The score_mods: name -> function."""
    return {
        "softcap": lambda s, b, h, q, k: 2.0 * torch.tanh(s / 2.0),
        "squared": lambda s, b, h, q, k: s * s + 0.5 * s,
        "alibi": lambda s, b, h, q, k: s + (k - q) * torch.exp2(-(h + 1) * 0.5),
        "distance": lambda s, b, h, q, k: s + c.distance[h, q - k + LONGEST],
        "by key": lambda s, b, h, q, k: s + c.by_key[b, k] * 0.3,
        "by row": lambda s, b, h, q, k: s * c.by_row[q].sigmoid(),
        "by head": lambda s, b, h, q, k: s * F.softplus(c.by_head)[h] + c.by_head[h],
        "gain": lambda s, b, h, q, k: s * c.gain,
        "everything": lambda s, b, h, q, k: torch.where(
            q >= k, (s * c.gain + c.by_key[b, k]).tanh() * torch.exp(c.distance[h, q]), s + c.by_row[k - 1]
        ),
        "hides": lambda s, b, h, q, k: torch.where((q + k) % 3 == 0, float("-inf"), s),
        "hides rows": lambda s, b, h, q, k: torch.where(q % 5 == 0, float("-inf"), s),
        "replaces": lambda s, b, h, q, k: c.by_row[k] - 1,
    }


def pairs_of_lists(counts, indices, full_counts, full_indices, block_size, says):
    """bool (rows, keys): the pairs of full blocks, and those of the other listed ones where `says`, likewise, holds.

    counts: (blocks of rows,); indices: (blocks of rows, n), in whatever order, with anything past the counts.
    """
    attended, (rows, keys) = torch.zeros_like(says), block_size
    for row in range(len(counts)):
        here = slice(row * rows, (row + 1) * rows)
        for column in indices[row, : counts[row]].tolist():
            there = slice(column * keys, (column + 1) * keys)
            attended[here, there] |= says[here, there]
        for column in full_indices[row, : full_counts[row]].tolist():
            attended[here, column * keys : (column + 1) * keys] = True
    return attended


def dense_flex(query, key, value, score_mod, attended, scale=None, dtype=torch.float64):
    """out, lse and max_scores by the definition, every tensor in a dtype but lse, which is fp32 at least.

    attended: bool that broadcasts with (batch, heads, q, k).
    """
    query, key, value = (x.to(dtype) for x in (query, key, value))
    batch, heads, rows, dim = query.shape
    keys = key.shape[2]
    key, value = (x.expand(batch, -1, -1, -1).repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    scores = query @ key.mT * (dim**-0.5 if scale is None else scale)
    if score_mod is not None:
        with default_dtype(dtype):
            scores = score_mod(scores, *places(batch, heads, rows, keys)) + torch.zeros_like(scores)
    scores = scores.masked_fill(~attended, -torch.inf)
    largest = torch.cat([scores, scores.new_full((batch, heads, rows, 1), -torch.inf)], 3).amax(3)
    empty = largest == -torch.inf
    safe = scores.masked_fill(empty[..., None], 0.0)
    lse = safe.to(torch.promote_types(dtype, torch.float32)).logsumexp(3).masked_fill(empty, -torch.inf)
    return safe.softmax(3).masked_fill(empty[..., None], 0.0) @ value, lse, largest


def places(batch, heads, rows, keys):
    sizes = (batch, heads, rows, keys)
    return [torch.arange(n, dtype=torch.int32).view(-1, *[1] * (3 - i)) for i, n in enumerate(sizes)]


class default_dtype:
    """In which torch makes floats of ints."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error):
        torch.set_default_dtype(self.before)
