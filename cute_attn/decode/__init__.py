"""The decode kernel: attention of a few new tokens over a cache."""
