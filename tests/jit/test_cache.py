"""The cache on disk: entries are whole or absent, verified before use, and rebuilt when they are broken."""

import shutil
import subprocess
import zlib

import pytest

from cute_attn.jit import KernelSpec, cache, load
from cute_attn.jit.compile import Compiled

SPEC = KernelSpec(layers=1)
LOG = "ptxas info: 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nUsed 168 registers"


class Exported:
    """Stands for a compiled function: exports an object with one symbol."""

    def export_to_c(self, object_file_path, function_name):
        source = f"int __tvm_ffi_{function_name}(void) {{ return 7; }}"
        subprocess.run(
            ["cc", "-c", "-fPIC", "-x", "c", "-", "-o", object_file_path], input=source, text=True, check=True
        )


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(load, "_kernels", {})
    return tmp_path


@pytest.fixture
def compiles(monkeypatch):
    """Replaces the compiler and the loader; counts what is compiled."""
    seen = []

    def compile(spec):
        seen.append(spec)
        return Compiled(spec, Exported(), "// ptx", b"", LOG)

    monkeypatch.setattr(load, "compile", compile)
    monkeypatch.setattr(load, "_open", lambda path, runtime: path.read_bytes())
    return seen


def forget():
    load._kernels.clear()


def test_an_entry_holds_the_shared_object_the_ptx_and_their_hashes(empty_cache):
    entry = cache.commit(Compiled(SPEC, Exported(), "// ptx", b"", LOG))
    assert entry.ptx == "// ptx"
    assert sorted(p.name for p in entry.shared_object.parent.iterdir()) == [
        "kernel.ptx.z",
        "kernel.so",
        "manifest.json",
    ]
    assert entry.manifest["spec"] == SPEC.canonical()
    assert (entry.manifest["registers"], entry.manifest["spill_bytes"]) == (168, 0)
    assert cache.read(SPEC) == entry
    assert not list(empty_cache.rglob(".*")), "no scratch directory stays behind"


def test_nothing_is_found_before_it_was_written():
    assert cache.read(SPEC) is None


def test_the_key_depends_on_the_spec_and_on_the_sources(monkeypatch):
    before = cache.key(SPEC)
    assert cache.key(KernelSpec(layers=1, sink=True)) != before
    monkeypatch.setattr(cache, "fingerprint", lambda op: "other sources")
    assert cache.key(SPEC) != before


def test_a_kernel_is_compiled_once_then_found_in_memory_then_on_disk(compiles):
    first = load.kernel(SPEC, "sim")
    assert load.kernel(SPEC, "sim") is first
    forget()
    assert load.kernel(SPEC, "sim").ptx == first.ptx
    assert compiles == [SPEC]


@pytest.mark.parametrize("name", ["kernel.so", "kernel.ptx.z", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_entry_is_set_aside_with_one_warning_and_rebuilt(name, damage, compiles, recwarn):
    load.kernel(SPEC, "sim")
    forget()
    path = cache.entry_path(SPEC) / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    load.kernel(SPEC, "sim")
    assert compiles == [SPEC, SPEC]
    assert [str(w.message).startswith("a cached kernel is broken") for w in recwarn] == [True]
    forget()
    load.kernel(SPEC, "sim")
    assert compiles == [SPEC, SPEC]


def test_an_entry_of_another_spec_is_broken():
    cache.commit(Compiled(SPEC, Exported(), "// ptx", b"", LOG))
    cache.entry_path(KernelSpec()).parent.mkdir()
    shutil.copytree(cache.entry_path(SPEC), cache.entry_path(KernelSpec()))
    with pytest.raises(cache.BrokenEntry, match="holds another spec"):
        cache.read(KernelSpec())


def test_whoever_commits_second_keeps_the_entry_of_the_first():
    cache.commit(Compiled(SPEC, Exported(), "first", b"", LOG))
    assert cache.commit(Compiled(SPEC, Exported(), "second", b"", LOG)).ptx == "first"


def test_a_cache_that_cannot_be_written_leaves_the_kernel_in_memory(compiles, monkeypatch):
    def refuse(compiled):
        raise PermissionError("read-only")

    monkeypatch.setattr(cache, "commit", refuse)
    with pytest.warns(UserWarning, match="could not be cached and lives in memory only: read-only"):
        first = load.kernel(SPEC, "sim")
    assert load.kernel(SPEC, "sim") is first
    assert compiles == [SPEC]


def test_the_ptx_is_compressed():
    text = "mov.b32 %r1, %r2;\n" * 1000
    entry = cache.commit(Compiled(SPEC, Exported(), text, b"", LOG))
    packed = (entry.shared_object.parent / "kernel.ptx.z").read_bytes()
    assert len(packed) < len(text) / 10
    assert zlib.decompress(packed).decode() == text
