"""What AttentionOp must give, written down pair by pair in fp64 from what the documents say, for autograd."""

import torch
from oracle import plain_attention


def sees(kind, size, query, key):
    """Whether the row at position `query` sees the key at position `key` by the kind of the layer alone."""
    if kind == "full":
        return True
    if kind == "local_sliding":
        return query - size < key <= query
    if kind == "chunk":
        return query // size == key // size and key <= query
    return key <= query


def kind_pairs(kind, size, positions, keys):
    """bool `(rows, keys)` for lists of positions."""
    rows = [[sees(kind, size, p, j) for j in keys] for p in positions]
    return torch.tensor(rows, dtype=torch.bool).view(len(positions), len(keys))


def in_one_run(ones, ids, i, j):
    """Whether tokens i and j are in one run of ones that no change of id cuts."""
    lo, hi = min(i, j), max(i, j)
    return all(ones[lo : hi + 1]) and (ids is None or len(set(ids[lo : hi + 1])) == 1)


def token_pairs(kind, size, batch, rows, keys, first, ids=None, bidirectional=None):
    """bool `(batch, rows, keys)` in modes train and prefill: row i is token `first + i`."""
    pairs = kind_pairs(kind, size, range(first, first + rows), range(keys)).repeat(batch, 1, 1)
    for b in range(batch):
        for i in range(rows):
            for j in range(keys):
                p = first + i
                if ids is not None:
                    pairs[b, i, j] &= bool(ids[b, p] == ids[b, j])
                if bidirectional is not None:
                    own = None if ids is None else ids[b].tolist()
                    pairs[b, i, j] |= in_one_run(bidirectional[b].tolist(), own, p, j)
    return pairs


def active_pairs(kind, size, batch, rows, keys, ids=None):
    """bool `(batch, rows, keys)` in mode autoregressive over one list of keys: the last row is at the last key."""
    pairs = kind_pairs(kind, size, range(keys - rows, keys), range(keys)).repeat(batch, 1, 1)
    return pairs if ids is None else pairs & (ids == 1)[:, None]


def cached_pairs(kind, size, rows, active, lengths, sizes, decode_ids=None):
    """bool `(batch, rows, prefill keys + decoded keys)`: `active` and `lengths` are lists, one number a sequence."""
    batches = []
    for b, (n, length) in enumerate(zip(active, lengths, strict=True)):
        positions = range(n + length - rows, n + length)
        prompt = kind_pairs(kind, size, positions, range(sizes[0]))
        prompt[:, n:] = False
        decoded = kind_pairs(kind, size, positions, range(n, n + sizes[1]))
        decoded[:, length:] = False
        if decode_ids is not None:
            decoded &= decode_ids[b] == 1
        batches.append(torch.cat([prompt, decoded], 1))
    return torch.stack(batches)


def moba_pairs(q, k, block, top_k, first):
    """bool `(batch, heads, rows, keys)`: one row, head and block after another."""
    batch, rows, heads, _ = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    pairs = torch.zeros(batch, heads, rows, keys, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            means = [part.mean(0) for part in k[b, :, h // group].split(block)]
            for i in range(rows):
                p = first + i
                own = p // block
                gates = {n: float(q[b, i, h] @ mean) for n, mean in enumerate(means) if n < own}
                if own < len(means):
                    gates[own] = float("inf")
                for n in sorted(gates, key=lambda n: (-gates[n], n))[:top_k]:
                    pairs[b, h, i, n * block : min((n + 1) * block, p + 1)] = True
    return pairs


def attend(q, k, v, pairs, scale=1.0, cap=0.0, sinks=None):
    """out `(b, t, heads, dv)`, lse `(b, heads, t)` and max_logits `(b, heads)`; pairs: `(b, 1 or heads, t, s)`."""
    sink = None if sinks is None else sinks.view(1, 1, 1, -1)
    return plain_attention(q, k, v, pairs, sink, scale, cap)
