"""The command line of the self-test. Imports argparse, PyTorch and the library, so that it runs wherever kernels do."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from cute_attn.errors import in_words
from cute_attn.jit.bundle import load_bundle

from .bench import bench
from .cases import GROUPS, AnyCase, TestedSpec, case_for, cases
from .report import WRONG, sentence, table
from .tools import SANITIZERS, profile, sanitize
from .watch import Row, Settings, Unable, run

__all__ = ["main"]

EXIT_RIGHT, EXIT_WRONG, EXIT_NOTHING = 0, 1, 2
PATIENCE = {"sm90": 30.0, "sim": 180.0}
DESCRIPTION = """
The kernels on this machine's GPU against float64, smallest first. Every case runs in a process that may hang or die
without taking the others along. A line of JSON comes for each case as it is done, a table at the end, and in the last
line the counts. Ends with 0 if all that ran is right, 1 if anything is wrong, hangs or dies, 2 if nothing could run.
"""


class _Parser(argparse.ArgumentParser):
    """Refuses bad input in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_NOTHING, f"{self.prog}: {message}\n")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program, allow_abbrev=False, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = "; ".join(f"{name}: {what}" for name, what in GROUPS.items())
    parser.add_argument(
        "--bundle",
        type=Path,
        help="test its kernels alone; else those of CUTE_ATTN_BUNDLES, of the cache, and what a compiler makes",
    )
    parser.add_argument("--budget", type=_seconds, default=300.0, metavar="SECONDS", help="for all, 300 if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines of JSON there too, as they come")
    parser.add_argument("--backend", choices=list(PATIENCE), default="sm90", help="sim: the same without a GPU, slowly")
    parser.add_argument(
        "--bench", action="store_true", help="then attention beside its peers, in the time that is left"
    )
    parser.add_argument(
        "--sanitize",
        nargs="?",
        const="memcheck",
        choices=list(SANITIZERS),
        help="then a few cases under compute-sanitizer",
    )
    parser.add_argument(
        "--profile", nargs="?", const=Path("selftest_profile"), type=Path, metavar="DIRECTORY",
        help="then ncu's counters of a large forward and backward; its reports stay in the directory",
    )  # fmt: skip
    parser.add_argument(
        "--group", action="append", choices=[*GROUPS, "none"], help=f"which cases, again for more; {groups}"
    )
    parser.add_argument("--case", action="append", metavar="PATTERN", help="only cases of such names; * for any text")
    parser.add_argument(
        "--patience", type=_seconds, metavar="SECONDS", help="without a word, until a kernel counts as hung"
    )
    parser.add_argument(
        "--list", action="store_true", help="name the cases and the kernels that they need, run nothing"
    )
    return parser


def main(arguments: Sequence[str] | None = None, program: str = "python -m cute_attn.selftest") -> int:
    """Runs the self-test and returns its exit code."""
    options = _parser(program).parse_args(arguments)
    try:
        chosen = _chosen(options)
        if options.list:
            print("\n".join(f"{case.name}: {case.spec}" for case in chosen))
            return EXIT_RIGHT
        lines = open(options.json, "w", buffering=1) if options.json else None  # noqa: SIM115
    except (OSError, ValueError) as error:
        text = in_words(error) if isinstance(error, OSError) else str(error)
        print(f"{program}: {' '.join(text.split())}", file=sys.stderr)
        return EXIT_NOTHING
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no process is left behind
    begun = time.monotonic()
    settings = Settings(
        backend=options.backend,
        bundle=str(options.bundle or ""),
        until=begun + options.budget,
        patience=options.patience or PATIENCE[options.backend],
    )
    rows: list[Row] = []
    try:
        for row in _all(options, chosen, settings):
            rows.append(row)
            _say(row, lines)
    except Unable as error:
        print(f"Nothing {'more ' * bool(rows)}could run: {error}")
        if not rows:
            return EXIT_NOTHING
    finally:
        if lines is not None:
            lines.close()
    print(table(rows))
    print(sentence(rows, time.monotonic() - begun))
    statuses = {row["status"] for row in rows}
    if statuses & set(WRONG):
        return EXIT_WRONG
    return EXIT_RIGHT if "right" in statuses else EXIT_NOTHING


def _chosen(options: argparse.Namespace) -> list[AnyCase]:
    """The cases in their order. Raises ValueError where none is left."""
    simulated = options.backend == "sim"
    groups = options.group or (["smoke", "matrix"] if simulated else ["smoke", "matrix", "long"])
    found = cases([group for group in groups if group != "none"], simulated)
    if options.bundle is not None:
        found += _further(options.bundle, found, simulated) if not options.group else []
    if options.case:
        found = [case for case in found if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in options.case)]
        if not found:
            raise ValueError(f"--case: no case is named like {' or '.join(options.case)}; --list names them")
    return found


def _further(path: Path, known: Sequence[AnyCase], simulated: bool) -> list[AnyCase]:
    """A case for each kernel of a bundle that no other case runs, so that a user's own bundle is tested whole."""
    tested = {case.spec for case in known}
    found = [case_for(spec) for spec in load_bundle(path).specs if isinstance(spec, TestedSpec) and spec not in tested]
    return [case.simulated() if simulated else case for case in found]


def _all(options: argparse.Namespace, chosen: Sequence[AnyCase], settings: Settings) -> Iterator[Row]:
    yield from run(chosen, settings)
    if options.sanitize:
        yield from sanitize(options.sanitize, settings)
    if options.profile:
        yield from profile(options.profile, settings)
    if options.bench:
        yield from bench(settings)


def _say(row: Row, lines: TextIO | None) -> None:
    error = {name: value if math.isfinite(value) else str(value) for name, value in row["error"].items()}
    text = json.dumps({**row, "error": error}, allow_nan=False)  # JSON has no number for NaN and infinity
    print(text, flush=True)
    if lines is not None:
        lines.write(text + os.linesep)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return seconds
