"""Who computes attention, as objects of one form: the reference in PyTorch, the kernels on a GPU or simulated."""
