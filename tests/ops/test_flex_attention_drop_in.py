"""A small transformer written for torch.nn.attention.flex_attention: with the import changed it runs, compiled too, and
trains on the CPU with the gradients of dense attention."""

import types

import pytest
import torch
import torch.nn.functional as F
from mods_case import dense_flex
from torch import nn
from torch.nn.attention import flex_attention as torch_flex

import cute_attn

LENGTH, VOCABULARY, WIDTH, HEADS, KEY_HEADS = 40, 11, 32, 4, 2


class Layer(nn.Module):
    def __init__(self, flex, window):
        super().__init__()
        self.flex, self.window = flex, window
        self.qkv = nn.Linear(WIDTH, WIDTH * 2)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.bias = nn.Parameter(torch.randn(HEADS, LENGTH) * 0.1)

    def forward(self, x, block_mask):
        batch, length, _ = x.shape
        heads = self.qkv(F.layer_norm(x, (WIDTH,))).view(batch, length, HEADS + 2 * KEY_HEADS, -1).transpose(1, 2)
        query, key, value = heads.split([HEADS, KEY_HEADS, KEY_HEADS], 1)

        def score_mod(score, b, h, q_idx, kv_idx):
            distance = (q_idx - kv_idx).clamp(0, LENGTH - 1)
            return 5.0 * torch.tanh(score / 5.0) + self.bias[h, distance]

        attended = self.flex.flex_attention(query, key, value, score_mod, block_mask, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(F.layer_norm(x, (WIDTH,)))


class Transformer(nn.Module):
    def __init__(self, flex):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(flex, window) for window in (None, 8))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens, masks):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, masks[layer.window])
        return self.head(x)


def masks_of(flex, documents):
    def causal(b, h, q_idx, kv_idx):
        return q_idx >= kv_idx

    def document(b, h, q_idx, kv_idx):
        return documents[b, q_idx] == documents[b, kv_idx]

    def window(b, h, q_idx, kv_idx):
        return q_idx - kv_idx < 8

    made = {}
    for name, parts in ((None, (causal, document)), (8, (causal, document, window))):
        mask_mod = flex.and_masks(*parts)
        made[name] = flex.create_block_mask(mask_mod, 2, None, LENGTH, LENGTH, device="cpu", BLOCK_SIZE=16)
    return made


def dense_attention(query, key, value, score_mod, mask_mod, enable_gqa):
    index = [torch.arange(n).view(-1, *[1] * (3 - i)) for i, n in enumerate((2, 1, LENGTH, LENGTH))]
    return dense_flex(query, key, value, score_mod, mask_mod(*index))[0]


DENSE = types.SimpleNamespace(
    flex_attention=dense_attention,
    and_masks=torch_flex.and_masks,
    create_block_mask=lambda mask_mod, *_, **__: mask_mod,
)


def built(flex):
    torch.manual_seed(0)
    return Transformer(flex).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
    documents = torch.randint(0, 2, (2, LENGTH), generator=generator).cumsum(1) // 8
    return tokens, documents


def loss_of(model, tokens, masks):
    logits = model(tokens, masks)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_gradients_are_those_of_dense_attention(compiled):
    torch._dynamo.reset()
    tokens, documents = batch()
    models = built(cute_attn), built(DENSE)
    run = torch.compile(models[0], fullgraph=True, backend="aot_eager") if compiled else models[0]
    losses = (
        loss_of(run, tokens, masks_of(cute_attn, documents)),
        loss_of(models[1], tokens, masks_of(DENSE, documents)),
    )
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.backward()
    for (name, mine), wanted in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-9, atol=1e-12, msg=name)
        assert mine.grad.any(), name


def test_it_runs_as_with_torch_and_with_torchs_masks():
    tokens, documents = batch()
    with torch.no_grad():
        wanted = built(torch_flex)(tokens, masks_of(torch_flex, documents))
        for masks in (masks_of(cute_attn, documents), masks_of(torch_flex, documents)):
            torch.testing.assert_close(built(cute_attn)(tokens, masks), wanted, rtol=1e-6, atol=1e-6)


def test_it_trains_on_the_cpu():
    tokens, documents = batch()
    model, masks = built(cute_attn).float(), masks_of(cute_attn, documents)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model, tokens, masks)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
