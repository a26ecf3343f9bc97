"""Masks of the field as functions of single pairs: what docs/functions.md shows."""

import torch

LENGTH = 1024  # of the sequences that tensors here describe

DOCUMENT = torch.bucketize(torch.arange(LENGTH), torch.tensor([200, 520, 900]), right=True)
PROMPT_END = torch.tensor([80, 300, 590, 1000])  # of the prompt that begins each document
IMAGE = torch.full((LENGTH,), -1)  # of images in text, which each token is in, -1 for text
IMAGE[150:400], IMAGE[600:850] = 0, 1
SEQLENS = torch.tensor([700, 1024])  # of the padded sequences of a batch
IS_GLOBAL = (torch.arange(LENGTH) < 24) | (torch.arange(LENGTH) // 32 == 17)
ANSWER = torch.bucketize(torch.arange(LENGTH), torch.tensor([256, 436, 696, 836]), right=True)  # 0 for the prompt
FRAME, ROW = 256, 16  # tokens of a frame of a video, of a row of a frame
BLOCKS = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.2  # of 64 x 64 tokens, some by chance
PARENT = (torch.arange(LENGTH) - 1) // 3
ANCESTOR = torch.eye(LENGTH, dtype=torch.bool)  # of a tree of drafted tokens in which each has three successors
for token in range(1, LENGTH):
    ANCESTOR[token] |= ANCESTOR[PARENT[token]]


def everything(b, h, q_idx, kv_idx):
    """Encoders, cross-attention."""
    return q_idx.new_ones((), dtype=torch.bool)


def causal(b, h, q_idx, kv_idx):
    """Decoders: every token attends itself and the past."""
    return q_idx >= kv_idx


def sliding_window(b, h, q_idx, kv_idx):
    """The last 256 tokens (Mistral, and every second layer of Gemma 2)."""
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 256)


def window_and_sinks(b, h, q_idx, kv_idx):
    """A window, and the first tokens for ever (StreamingLLM)."""
    return (q_idx >= kv_idx) & ((q_idx - kv_idx < 200) | (kv_idx < 64))


def window_by_head(b, h, q_idx, kv_idx):
    """Each head looks twice as far as the one before; here head 2."""
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 64 << h)


def prefix_lm(b, h, q_idx, kv_idx):
    """All of the prefix is seen by all, the rest is causal (T5, PaliGemma)."""
    return (kv_idx < 300) | (q_idx >= kv_idx)


def padded(b, h, q_idx, kv_idx):
    """Causal sequences of a batch, padded to one length; here the first, of 700 tokens."""
    return (q_idx >= kv_idx) & (kv_idx < SEQLENS[b])


def packed(b, h, q_idx, kv_idx):
    """Packed documents of a decoder that do not see one another."""
    return (DOCUMENT[q_idx] == DOCUMENT[kv_idx]) & (q_idx >= kv_idx)


def packed_prefix_lm(b, h, q_idx, kv_idx):
    """Packed documents, each a prompt that is seen whole and an answer."""
    same = DOCUMENT[q_idx] == DOCUMENT[kv_idx]
    return same & ((kv_idx < PROMPT_END[DOCUMENT[q_idx]]) | (q_idx >= kv_idx))


def shared_prompt(b, h, q_idx, kv_idx):
    """Four answers to one prompt, which is computed once (GRPO, best of n)."""
    return (q_idx >= kv_idx) & ((ANSWER[kv_idx] == 0) | (ANSWER[q_idx] == ANSWER[kv_idx]))


def chunked(b, h, q_idx, kv_idx):
    """Causal inside of fixed chunks (Llama 4)."""
    return (q_idx // 300 == kv_idx // 300) & (q_idx >= kv_idx)


def block_causal(b, h, q_idx, kv_idx):
    """All of the own frame and of those before (video models, VAR)."""
    return q_idx // 200 >= kv_idx // 200


def block_diffusion(b, h, q_idx, kv_idx):
    """The training mask of BD3-LM: noisy blocks in the first half, the clean ones in the second."""
    half = LENGTH // 2
    is_noisy_q, is_noisy_k = q_idx < half, kv_idx < half
    block_q, block_k = q_idx % half // 64, kv_idx % half // 64
    own = (block_q == block_k) & (is_noisy_q == is_noisy_k)
    before = (block_q > block_k) & ~is_noisy_k
    return own | before


def images_in_text(b, h, q_idx, kv_idx):
    """Text is causal, the tokens of an image attend all of the image (Transfusion, Gemma 3)."""
    return (q_idx >= kv_idx) | ((IMAGE[q_idx] >= 0) & (IMAGE[q_idx] == IMAGE[kv_idx]))


def global_tokens(b, h, q_idx, kv_idx):
    """A window for most, everything for a few (Longformer)."""
    return ((q_idx - kv_idx).abs() <= 140) | IS_GLOBAL[q_idx] | IS_GLOBAL[kv_idx]


def neighbourhood(b, h, q_idx, kv_idx):
    """An image of 32 x 32 tokens, each attending the 13 x 13 around it, moved inwards at the edges (NATTEN)."""
    row, column = (x.clamp(6, 25) for x in (q_idx // 32, q_idx % 32))
    return ((row - kv_idx // 32).abs() <= 6) & ((column - kv_idx % 32).abs() <= 6)


def shifted_windows(b, h, q_idx, kv_idx):
    """An image of 32 x 32 tokens in windows of 8 x 8 that begin at 4 (Swin)."""
    same_rows = (q_idx // 32 + 4) // 8 == (kv_idx // 32 + 4) // 8
    return same_rows & ((q_idx % 32 + 4) // 8 == (kv_idx % 32 + 4) // 8)


def space_and_time(b, h, q_idx, kv_idx):
    """Four frames of 16 x 16 tokens: all of the own frame, and the rows around in the frames before."""
    is_own = q_idx // FRAME == kv_idx // FRAME
    rows = (q_idx % FRAME // ROW - kv_idx % FRAME // ROW).abs()
    return is_own | ((q_idx // FRAME > kv_idx // FRAME) & (rows <= 2))


def strided(b, h, q_idx, kv_idx):
    """The last tokens, and every 32nd before (the sparse transformer)."""
    return (q_idx >= kv_idx) & ((q_idx - kv_idx < 32) | ((q_idx - kv_idx) % 32 == 0))


def dilated(b, h, q_idx, kv_idx):
    """Every fourth token of a window (LongNet)."""
    return ((q_idx - kv_idx).abs() <= 512) & ((q_idx - kv_idx) % 4 == 0)


def random_blocks(b, h, q_idx, kv_idx):
    """A window, the first tokens and blocks by chance (BigBird)."""
    return ((q_idx // 64 - kv_idx // 64).abs() <= 1) | (kv_idx < 64) | BLOCKS[q_idx // 64, kv_idx // 64]


def tree(b, h, q_idx, kv_idx):
    """Drafted tokens in a tree, each attending its ancestors (Medusa, EAGLE)."""
    return ANCESTOR[q_idx, kv_idx]
