"""Exact attention under irregular masks on NVIDIA Hopper, on one GPU or many."""
