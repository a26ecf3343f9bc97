"""Packs what a bare GPU machine lacks into a folder: python benchmarks/first_light/pack.py FOLDER. Needs no GPU.

FOLDER/tree      this repository, without its pictures
FOLDER/runtime   the runtime half of the CuTe DSL: wheels, and its CUDA library without the compiler
FOLDER/bundle    every kernel that the steps of run.py need: of the self-test, the benchmarks, the tests marked gpu

What is there already is used again: a second run compiles only what changed. It prints the size of each part and fails
where a part, or all of them, exceeds LIMIT.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
LIMIT = 64 << 20  # bytes of the whole folder: what one transfer may take on a machine that is hard to reach
LEFT_OUT = {".png", ".ipynb"}  # of the tree
WHEELS = ("nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-base", "nvidia-cutlass-dsl-libs-core", "apache-tvm-ffi")
# One wheel, for a CUDA, with the runtime library and, ten times as large, the compiler: the one that is installed here.
LIBRARIES = ("nvidia-cutlass-dsl-libs-cu13", "nvidia-cutlass-dsl-libs-cu12")
COMPILER = "_cutlass_ir"  # the name of the compiler's library begins so
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
PARTS = ("tree", "runtime", "bundle")


def pack_tree(folder: Path) -> None:
    listed = _run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    shutil.rmtree(folder, ignore_errors=True)
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        inside = folder.parent.resolve() in source.parents  # of what is packed here, at an earlier time
        if source.is_file() and source.suffix not in LEFT_OUT and not inside:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def pack_runtime(folder: Path, python: str) -> None:
    """Downloads the wheels of the versions that are installed here, for another Python on such a processor."""
    libraries_name = next(filter(_is_installed, LIBRARIES), LIBRARIES[-1])
    wanted = {name: importlib.metadata.version(name) for name in (*WHEELS, libraries_name)}
    label = f"{python} {wanted}\n"
    if (folder / "made_for").exists() and (folder / "made_for").read_text() == label:
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        platforms = [option for name in PLATFORMS for option in ("--platform", f"{name}_{platform.machine()}")]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", *platforms, "-d", scratch]
        _run(*command, *(f"{name}=={version}" for name, version in wanted.items()))
        (libraries,) = Path(scratch).glob(f"{libraries_name.replace('-', '_')}-*.whl")
        for wheel in Path(scratch).glob("*.whl"):
            if wheel != libraries:
                shutil.copy2(wheel, folder / "wheels")
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(libraries) as archive:
            archive.extractall(unpacked)
        with tarfile.open(folder / "libraries.tar.xz", "w:xz") as archive:
            for path in sorted(unpacked.rglob("*")):
                if path.is_file() and not path.name.startswith(COMPILER):
                    archive.add(path, path.relative_to(unpacked))
    (folder / "made_for").write_text(label)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def pack_bundle(folder: Path, specs: Sequence, workers: int) -> int:
    """Builds the kernels into the bundle, and removes those that are not asked for any more; how many failed."""
    from cute_attn.jit import cache
    from cute_attn.jit.build import build

    failed = 0
    for outcome in build(specs, folder, workers):
        print(f"  {outcome.error or f'{outcome.seconds:5.1f} s'}  {outcome.item}", flush=True)
        failed += bool(outcome.error)
    wanted = {cache.entry_path(spec, folder) for spec in specs}
    for path in cache.entry_directories(folder):
        if path not in wanted:
            shutil.rmtree(path)
    return failed


def all_specs() -> list:
    import measurements
    from run import GPU_TESTS

    from cute_attn.selftest.cases import profiled
    from cute_attn.selftest.cases import specs as of_selftest

    found = [*of_selftest(), *(case.spec for case in profiled()), *measurements.specs(), *specs_of_tests(GPU_TESTS)]
    return list(dict.fromkeys(found))


def specs_of_tests(tests: Iterable[str], options: Sequence[str] = ("-m", "not slow", "-k", "sim")) -> list:
    """What the tests marked gpu would launch: each has a twin in simulation, which asks for the same kernels."""
    from cute_attn.jit.build import load_specs

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "specs.json"
        variables = {"RECORDED": str(file), "PYTHONPATH": f"{HERE}:{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "recording",
            "-p",
            "no:cacheprovider",
            "--tb=no",
            *options,
        ]
        ended = subprocess.run(
            [*command, *tests], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
        )
        if not file.exists():
            raise SystemExit(f"the tests could not be collected:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        return load_specs(file)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each part that is there."""
    parts = {part: folder / part for part in PARTS if (folder / part).exists()}
    return {part: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for part, path in parts.items()}


def _run(*command: str, cwd: Path | None = None) -> str:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr}")
    return ended.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="a comma list; all if not given")
    parser.add_argument("--specs", type=Path, help="a bundle of this JSON list of specs in place of all")
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="kernels compiled at a time")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    sys.path.insert(0, str(HERE))
    failed = 0
    if "tree" in parts:
        pack_tree(options.folder / "tree")
    if "runtime" in parts:
        pack_runtime(options.folder / "runtime", options.python)
    if "bundle" in parts:
        from cute_attn.jit.build import load_specs

        specs = load_specs(options.specs) if options.specs else all_specs()
        print(f"{len(specs)} kernels", flush=True)
        failed = pack_bundle(options.folder / "bundle", specs, options.workers)
    found = sizes(options.folder)
    for part, size in {**found, "all": sum(found.values())}.items():
        print(f"{part:8} {size / 2**20:6.1f} MiB")
    if sum(found.values()) > LIMIT:
        print(f"too large: all of it may have {LIMIT >> 20} MiB")
        return 1
    run = options.folder / "tree" / "benchmarks" / "first_light" / "run.py"
    print(f"with this folder on the GPU machine: python3 {run} --budget 400")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
