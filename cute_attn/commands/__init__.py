"""The commands of `cute-attn`, one a file."""
