"""The compiled host code: on the stub, from tensors to launches and back to a report."""
