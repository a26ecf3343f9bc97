"""Which rank holds which rows: from a mask to placements of queries and keys."""
