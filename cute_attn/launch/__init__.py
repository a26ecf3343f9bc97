"""From a problem to a launch: the table of operations, tensors as kernels take them, tiles that were measured."""
