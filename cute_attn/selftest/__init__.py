"""The kernels on this machine against float64: `cute-attn selftest`, or `python -m cute_attn.selftest`."""
