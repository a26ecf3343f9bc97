"""`python -m cute_attn.selftest`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
