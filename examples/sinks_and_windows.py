"""Layers as in gpt-oss: every second one sees a window of 128 tokens, and each head has a sink that it may attend.

    python examples/sinks_and_windows.py [--tokens N] [--layers N]

A sink is a learned logit without a value: what goes to it goes nowhere, so that a head can attend to nothing. The
table says how much that is in each layer, read off the lse, and what the windows save. Sinks are trained for a few
steps to let half of the attention go, which their gradient can do alone.
"""

from __future__ import annotations

import argparse

import torch

from cute_attn import fa3_func_with_sink, mask

HEADS_Q, HEADS_K, HEAD_DIM, WINDOW = 8, 1, 64, 128
STEPS, RATE = 40, 1.0


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor, layer: int) -> torch.Tensor:
    """The share of each head's attention that its sink takes, a mean over rows: (heads,)."""
    window = (WINDOW - 1, 0) if layer % 2 == 0 else (-1, 0)  # a token's own key is one of them
    options = {"causal": True, "window_size": window, "return_attn_probs": True}
    _, lse = fa3_func_with_sink(q, k, v, sink, **options)
    return (sink[None, :, None] - lse).exp().mean((0, 2))


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    n = options.tokens
    layers = [
        [torch.randn(1, n, h, HEAD_DIM, device=device, dtype=dtype) for h in (HEADS_Q, HEADS_K, HEADS_K)]
        for _ in range(options.layers)
    ]
    sinks = torch.zeros(options.layers, HEADS_Q, device=device, requires_grad=True)
    before = [attend(*tensors, sinks[i], i).mean().item() for i, tensors in enumerate(layers)]
    for _ in range(STEPS):
        shares = torch.stack([attend(*tensors, sinks[i], i) for i, tensors in enumerate(layers)])
        (gradient,) = torch.autograd.grad((shares - 0.5).square().sum(), sinks)
        with torch.no_grad():
            sinks -= RATE * gradient / shares.detach().mul(1 - shares.detach()).clamp(min=0.05)
    after = [attend(*tensors, sinks[i], i).mean().item() for i, tensors in enumerate(layers)]

    full = mask.causal(n).area()
    print(f"{'layer':<8} {'keys a row':>11} {'pairs':>8} {'sink before':>12} {'after':>7} {'its logit':>10}")
    for i in range(options.layers):
        pairs = mask.sliding_window(n, window_size=WINDOW).area() if i % 2 == 0 else full
        kept = f"up to {WINDOW}" if i % 2 == 0 else "all"
        logit = sinks[i].mean().item()
        print(f"{i:<8} {kept:>11} {pairs / full:8.0%} {before[i]:12.1%} {after[i]:7.1%} {logit:10.2f}")
    if not all(abs(share - 0.5) < 0.1 for share in after):
        raise SystemExit("the sinks were not learned")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Windows and sinks as in gpt-oss.")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="(default 512)")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="(default 4)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
