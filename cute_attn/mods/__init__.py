"""Python functions of a score and its place, score_mod and mask_mod, as graphs of scalar operations."""
