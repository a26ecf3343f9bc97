"""What the machine code of kernels depends on, and nothing else: a leaf, which imports nothing of ours."""
