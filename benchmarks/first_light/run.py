"""The first light: every step that a new GPU machine is worth, in order of value, each with its limit.

python3 FOLDER/tree/benchmarks/first_light/run.py [--budget SECONDS] [--steps env,smoke,...] [--out FOLDER]

FOLDER is what pack.py made. Each step is a process; none stops the next. Findings go to OUT/findings.jsonl at once,
what a step writes besides to OUT/STEP.log, and a table comes last and into OUT/table.txt. Needs Python with PyTorch,
NumPy and, for some steps, pytest, click and rich; what is not there costs its step alone. Exits with 1 if anything was
wrong, hung or crashed, with 2 if nothing ran.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from findings import Finding, hung_operations, table

HERE, TREE = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
PACKED = TREE.parent
SPARE = 12.0  # seconds at the end, for what is written last
LEAST = 15.0  # a step is not begun with less
GRACE = 5.0  # between being asked to end and being ended
GPU_TESTS = (
    *("tests/fwd", "tests/bwd", "tests/ops/test_kernel_dispatch.py", "tests/decode"),
    *("tests/ops/test_flex_attention_kernels.py", "tests/launch/test_backward_order.py"),
)
UNTIL = "{until}"  # in a command: the seconds that its step has, less what it takes to end


@dataclass(frozen=True)
class Step:
    """A command and the seconds that it may take."""

    name: str
    seconds: float
    command: tuple[str, ...]


def steps(options: argparse.Namespace) -> list[Step]:
    """All of them, most valuable first."""
    python = sys.executable
    selftest = (python, "-m", "cute_attn.selftest", "--backend", options.backend, "--budget", UNTIL)
    bench = (python, str(HERE / "bench.py"))
    timed = ("--until", UNTIL, "--folder", str(options.out), *(["--simulate"] * (options.backend == "sim")))
    few = [f"--case={pattern}" for pattern in options.case]
    tests = (python, "-m", "pytest", *GPU_TESTS, "--tb=line", "-W", "ignore", "-p", "no:cacheprovider")
    chosen = ("-m", "gpu and not slow") if options.backend == "sm90" else ("-m", "not slow", "-k", "sim and slices_run")
    return [
        Step("env", 60, (python, str(HERE / "environment.py"))),
        Step("smoke", 150, (*selftest, "--group", "smoke")),
        Step("matrix", 100, (*selftest, "--group", "matrix", *few)),
        Step("core", 150, (*bench, "core", *timed)),
        Step("ncu", 90, (*selftest, "--group", "none", "--profile", str(options.out))),
        Step("long", 60, (*selftest, "--group", "long", *few)),
        Step("tiles", 60, (*bench, "tiles", *timed)),
        Step("memcheck", 90, (*selftest, "--group", "none", "--sanitize", "memcheck")),
        Step("tests", 100, (*tests, *chosen)),
        Step("rest", 150, (*bench, "rest", *timed)),
        Step("racecheck", 90, (*selftest, "--group", "none", "--sanitize", "racecheck")),
    ]


class Runner:
    """Runs steps within a budget and keeps what they find."""

    def __init__(self, out: Path, budget: float, patience: float) -> None:
        self.out, self._end, self._patience = out, time.monotonic() + budget, patience
        self._begun = time.monotonic()
        self.found: list[Finding] = []
        self._file = open(out / "findings.jsonl", "w", buffering=1)  # noqa: SIM115
        self._log = open(out / "log.txt", "w", buffering=1)  # noqa: SIM115

    def left(self) -> float:
        return self._end - time.monotonic()

    def say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._begun:.0f} s] {text}"
        print(line, flush=True)
        self._log.write(line + "\n")

    def note(self, step: str, **finding: object) -> None:
        self.found.append({"step": step, **finding})
        self._file.write(json.dumps(self.found[-1]) + "\n")

    def run(self, step: Step, extra: Sequence[str] = ()) -> None:
        seconds = min(step.seconds * self._patience, self.left() - SPARE)
        if seconds < LEAST:
            self.say(f"{step.name}: skipped, no time left")
            self.note("steps", case=step.name, status="skipped", detail="no time left", seconds=0.0)
            return
        self.say(f"{step.name}: at most {seconds:.0f} s")
        until = f"{seconds - GRACE:.0f}"
        command = [until if word == UNTIL else word for word in (*step.command, *extra)]
        begun = time.monotonic()
        path = self.out / f"{step.name}.log"
        with open(path, "ab") as log:
            ended, said = self._watched(step.name, command, seconds, log)
        for line in said:
            if line.startswith(("FAILED ", "ERROR ")):  # of pytest
                self.note(step.name, case=line.split()[1], status="wrong", detail=line)
        if not said and ended != "exit 0":  # it died without a word: the end of its traceback
            lines = path.read_text(errors="replace").split("\n")
            said = [line for line in lines if line.strip() and not line.startswith("{")]
        if said:
            ended += f": {said[-1][:200]}"
        took = time.monotonic() - begun
        self.say(f"{step.name}: {ended} after {took:.0f} s")
        self.note("steps", case=step.name, status="ended", detail=ended, seconds=round(took, 1))

    def _watched(self, name: str, command: Sequence[str], seconds: float, log) -> tuple[str, list[str]]:
        """Runs a command and notes the JSON lines of its stdout; how it ended, and what else it said."""
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=TREE, start_new_session=True, env=os.environ
            )
        except OSError as error:
            return f"{type(error).__name__}: {error}", []
        end, rest, late = time.monotonic() + seconds, b"", False
        said: list[str] = []
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, end - time.monotonic())):
                    late = True
                    break
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    log.write(line + b"\n")
                    text = line.decode(errors="replace")
                    try:
                        self.note(name, **json.loads(text if text.startswith("{") else ""))
                    except ValueError:
                        said += [text] if text.strip() else []
                if not chunk:
                    break
        return ("cut: its time was over" if _ended(process, late) else f"exit {process.returncode}"), said


def _ended(process: subprocess.Popen, late: bool) -> bool:
    """Ends a process and all that it started; whether it had to be made to."""
    if not late:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    stuck = process.poll() is None
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    return stuck


def misfit() -> str:
    """Why no step can run with this Python, "" if it can: else each would fail in a way of its own."""
    here, made_for = "{}.{}".format(*sys.version_info), PACKED / "runtime" / "made_for"
    wanted = made_for.read_text().split()[0] if made_for.exists() else here
    if wanted != here:
        return (
            f"this is Python {here}, and {PACKED} was packed for {wanted}: use that one, or pack with --python {here}"
        )
    missing = [name for name in ("torch", "numpy") if importlib.util.find_spec(name) is None]
    return f"{sys.executable} has no {' and no '.join(missing)}" if missing else ""


def unpack_runtime(site: Path) -> str:
    """Makes the runtime half of the DSL importable from `site`; what went wrong, "" if nothing."""
    packed, mark = PACKED / "runtime", site / "made_for"
    if not packed.exists():
        return ""
    if not (packed / "made_for").exists():
        return f"{packed} was not packed to its end"
    label = (packed / "made_for").read_text()
    if mark.exists() and mark.read_text() == label:
        return ""
    shutil.rmtree(site, ignore_errors=True)  # of another pack, or cut short
    wheels = [str(wheel) for wheel in sorted((packed / "wheels").glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    ended = subprocess.run([*command, "--target", str(site), *wheels], capture_output=True, text=True)
    if ended.returncode:
        return ended.stderr[-1000:]
    with tarfile.open(packed / "libraries.tar.xz") as archive:
        archive.extractall(site, filter="data")
    mark.write_text(label)
    return ""


def set_environment(work: Path, site: Path) -> None:
    """For all steps: our sources, the runtime, the bundle, and nothing compiled."""
    packages = [str(TREE), str(site), str(site / "nvidia_cutlass_dsl" / "dsl_packages")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["CUTE_ATTN_CACHE_DIR"] = str(work / "cache")
    os.environ["CUTE_ATTN_CACHE_MODE"] = "cached-only"
    os.environ.update(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", PYTHONWARNINGS="ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "8")
    if (PACKED / "bundle").exists():
        os.environ["CUTE_ATTN_BUNDLES"] = str(PACKED / "bundle")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=400.0, help="seconds for all; the default leaves 60 of 460")
    parser.add_argument("--steps", help="a comma list; all if not given")
    parser.add_argument("--out", type=Path, default=Path("first_light_out"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/first_light"), help="for what is unpacked, and a cache")
    parser.add_argument("--backend", choices=["sm90", "sim"], default="sm90", help="sim: a rehearsal without a GPU")
    parser.add_argument("--case", action="append", default=[], help="only such cases of matrix and long")
    parser.add_argument("--patience", type=float, default=1.0, help="what limits of steps are multiplied with")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    known = {step.name: step for step in steps(options)}
    wanted = options.steps.split(",") if options.steps else list(known)
    if unknown := set(wanted) - set(known):
        parser.error(f"--steps: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if problem := misfit():
        parser.error(problem)
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.out, options.budget, options.patience)
    set_environment(options.work, options.work / "site")
    if problem := unpack_runtime(options.work / "site"):
        runner.note("env", case="unpacking the runtime", status="wrong", detail=problem)
    warming = _warm(options) if {"core", "rest"} & set(wanted) else None
    open_steps = [known[name] for name in known if name in wanted]
    while open_steps:
        step = open_steps.pop(0)
        if step.name == "core" and warming is not None:
            _await(warming, min(40.0, runner.left() - SPARE))
        hung = [word for operation in hung_operations(runner.found) for word in ("--leave-out", operation)]
        runner.run(step, hung if step.name in ("core", "tiles", "rest") else ())
        if step.name == "matrix" and any(f.get("status") == "wrong" for f in runner.found):
            # Where wrong numbers come from is worth more than speed.
            open_steps.sort(key=lambda s: s.name != "memcheck")
    if warming is not None:
        _await(warming, 0.0)
    text = table(runner.found)
    (options.out / "table.txt").write_text(text + "\n")
    print(text)
    runner.say(f"done, {runner.left():.0f} s of the budget left; all is in {options.out}")
    if any(f.get("status") in ("wrong", "hang", "crash") for f in runner.found):
        return 1
    return 0 if any(f.get("status") == "ended" for f in runner.found) else 2  # nothing ran: nothing is known


def _warm(options: argparse.Namespace) -> subprocess.Popen:
    """Compiles what the peers need on idle cores while kernels are checked."""
    command = [sys.executable, str(HERE / "bench.py"), "warm", *(["--simulate"] * (options.backend == "sim"))]
    with open(options.out / "warm.log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=TREE, start_new_session=True)


def _await(process: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, seconds))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
