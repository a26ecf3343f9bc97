"""How long a compiled kernel should take on a Hopper GPU that is not there: predicted, never measured."""
