"""`python -m autotune`."""

import sys

from cute_attn.cli import main

main(["autotune", *sys.argv[1:]], prog_name="python -m")
