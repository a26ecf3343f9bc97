"""The public attention functions: argument checks, custom ops and autograd."""
