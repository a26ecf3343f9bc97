"""Many processes and one cache: one compiles, the others wait; who dies while writing breaks nothing."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import pytest
from fake_compiler import compiled

from cute_attn.jit import cache, entry, obtain
from cute_attn.jit.entry import link
from cute_attn.launch import run as launch
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm

SPEC = ForwardSpec(mask=MaskForm(True))
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def slow_compiles(monkeypatch, tmp_path):
    """A compiler that takes a while; every compile, in whatever process, leaves a file that names it."""
    directory = tmp_path / "compiles"
    directory.mkdir()

    def compile(spec):
        time.sleep(0.5)
        (directory / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        return compiled(spec)

    monkeypatch.setattr(obtain, "compile", compile)
    monkeypatch.setattr(launch, "_open", lambda shared_object, backend: shared_object)
    compiled(SPEC).function.export_to_c("/dev/null", entry.SYMBOL)  # the children inherit the object file
    return directory


def in_child(work, *arguments):
    """Runs `work` in a forked process; returns the process."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def test_eight_processes_that_start_cold_on_one_spec_compile_it_once(slow_compiles):
    start = FORK.Barrier(8)
    results = FORK.Queue()

    def work():
        start.wait()
        results.put(launch.kernel(SPEC, "sim").ptx)

    processes = [in_child(work) for _ in range(8)]
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert found == ["// ptx"] * 8
    assert len(list(slow_compiles.iterdir())) == 1


def test_processes_with_different_specs_do_not_wait_for_each_other():
    with cache.lock(SPEC):
        process = in_child(lambda: cache.lock(ForwardSpec()).__enter__())
        process.join(30)
        assert process.exitcode == 0


@pytest.mark.parametrize("file", ["kernel.so", "kernel.ptx.z", "manifest.json"])
def test_a_writer_that_is_killed_leaves_no_broken_entry_and_no_lock(file, slow_compiles, monkeypatch, recwarn):
    write_bytes, write_text = Path.write_bytes, Path.write_text

    def dying(write):
        def until(self, content):
            half = content[: len(content) // 2]
            write(self, half if self.name == file else content)
            if self.name == file:
                os.kill(os.getpid(), 9)

        return until

    def work():
        Path.write_bytes, Path.write_text = dying(write_bytes), dying(write_text)
        launch.kernel(SPEC, "sim")

    process = in_child(work)
    process.join(60)
    assert process.exitcode == -9
    assert cache.read(SPEC) is None
    left = list(cache.entry_path(SPEC).parent.iterdir())
    assert [p.name[:5] for p in left] == [".new-"]
    assert launch.kernel(SPEC, "sim").ptx == "// ptx"
    assert len(list(slow_compiles.iterdir())) == 2
    assert not recwarn


def test_processes_that_find_a_broken_entry_rebuild_it_once(slow_compiles):
    cache.commit(link(compiled(SPEC)))
    (cache.entry_path(SPEC) / "kernel.so").write_bytes(b"")
    start = FORK.Barrier(4)

    def work():
        import warnings

        warnings.simplefilter("ignore")
        start.wait()
        launch.kernel(SPEC, "sim")

    processes = [in_child(work) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(slow_compiles.iterdir())) == 1
    assert len(list(cache.entry_path(SPEC).parent.glob(".broken-*"))) == 1


def test_where_files_cannot_be_locked_threads_still_compile_once(slow_compiles, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    def refuse(self, *arguments, **options):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: launch.kernel(SPEC, "sim"), range(4)))
    assert all(kernel is found[0] for kernel in found)
    assert len(list(slow_compiles.iterdir())) == 1


@pytest.fixture
def read_only(monkeypatch):
    """A cache with one entry that this process may read and not write."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(root))
    cache.commit(link(compiled(SPEC)))
    paths = [root, *root.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield root
    for path in paths:
        path.chmod(0o755)
    shutil.rmtree(root)


def test_a_read_only_cache_is_read_and_what_it_lacks_lives_in_memory(read_only, compiles):
    results = FORK.Queue()

    def work():
        import warnings

        if os.getuid() == 0:
            os.setuid(65534)  # root may write everywhere
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            results.put(launch.kernel(SPEC, "sim").ptx)
            results.put(len(seen))
            results.put(launch.kernel(ForwardSpec(), "sim").ptx)
            results.put([str(w.message) for w in seen])

    process = in_child(work)
    process.join(60)
    assert process.exitcode == 0
    assert results.get(timeout=5) == "// ptx"
    assert results.get(timeout=5) == 0, "an entry of a read-only cache is found without a word"
    assert results.get(timeout=5) == "// ptx"
    (warning,) = results.get(timeout=5)
    assert warning.startswith("the cache cannot be used, so that kernels made now live in memory only: ")
    assert cache.entry_directories(read_only) == [cache.entry_path(SPEC)]


@pytest.mark.slow
def test_eight_cold_processes_compile_a_real_kernel_once_and_all_of_them_can_run_it(tmp_path):
    program = (
        "from cute_attn.jit.compile import compile_count; from cute_attn.launch.run import kernel\n"
        "from cute_attn.spec.forward import ForwardSpec\n"
        "found = kernel(ForwardSpec(head_dim=64, head_dim_v=64), 'sim'); print(compile_count(), len(found.ptx))"
    )
    environment = {**os.environ, "CUTE_ATTN_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(8)
    ]
    lines = [process.communicate(timeout=600)[0].split() for process in processes]
    assert sorted(count for count, _ in lines) == ["0"] * 7 + ["1"]
    assert len({size for _, size in lines}) == 1
