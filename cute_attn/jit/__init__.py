"""Kernels by specification: compiling them, and keeping them. It knows no kernel by name."""
