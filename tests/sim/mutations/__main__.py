"""`cd tests/sim && python -m mutations`: runs the whole suite and writes its table into docs/simulator.md."""

import os

os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")

from mutations import table
from mutations.suite import MUTATIONS, run_all

if __name__ == "__main__":
    table.write({name: run_all(mutation) for name, mutation in MUTATIONS.items()})
