"""The cache on disk: entries are whole or absent, verified before use, and rebuilt when they are broken."""

import errno
import json
import os
import shutil
import zlib

import pytest
from fake_compiler import compiled, forget

from cute_attn.jit import cache, entry
from cute_attn.jit.entry import link
from cute_attn.jit.obtain import KernelNotBuilt, obtain
from cute_attn.launch import run as launch
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm

SPEC = ForwardSpec(mask=MaskForm(True))
FILES = ["kernel.ptx.z", "kernel.so", "manifest.json"]


def test_an_entry_holds_the_shared_object_the_ptx_and_their_hashes(empty_cache):
    found = cache.commit(link(compiled(SPEC)))
    assert found.ptx == "// ptx"
    assert sorted(p.name for p in found.directory.iterdir()) == FILES
    manifest = json.loads((found.directory / "manifest.json").read_text())
    assert manifest["spec"] == SPEC.canonical()
    assert (manifest["registers"], manifest["spill_bytes"], manifest["warnings"]) == (168, 0, [])
    assert set(manifest["sha256"]) == {"kernel.o", "kernel.so", "kernel.ptx.z"}
    assert set(manifest["made_from"]) == {"architecture", "packages", "sources"}
    assert cache.read(SPEC) == found
    assert not list(empty_cache.rglob(".*")), "no scratch directory stays behind"


def test_nothing_is_found_before_it_was_written():
    assert cache.read(SPEC) is None


def test_a_kernel_is_compiled_once_then_found_in_memory_then_on_disk(compiles):
    first = launch.kernel(SPEC, "sim")
    assert launch.kernel(SPEC, "sim") is first
    forget()
    assert launch.kernel(SPEC, "sim").ptx == first.ptx
    assert compiles == [SPEC]


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_entry_is_set_aside_with_one_warning_and_rebuilt(name, damage, compiles, recwarn):
    launch.kernel(SPEC, "sim")
    forget()
    path = cache.entry_path(SPEC) / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(flip(content, len(content) // 3))
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    launch.kernel(SPEC, "sim")
    assert compiles == [SPEC, SPEC]
    assert [str(w.message).startswith("a cached kernel is broken") for w in recwarn] == [True]
    assert len(list(cache.entry_path(SPEC).parent.glob(".broken-*"))) == 1
    forget()
    launch.kernel(SPEC, "sim")
    assert compiles == [SPEC, SPEC]


@pytest.mark.parametrize("name", FILES)
def test_no_byte_of_an_entry_can_change_unseen(name):
    path = cache.commit(link(compiled(SPEC))).directory / name
    content = path.read_bytes()
    step = max(1, len(content) // 199)
    for position in range(0, len(content), step):
        path.write_bytes(flip(content, position))
        with pytest.raises(cache.BrokenEntry):
            cache.read(SPEC)
    path.write_bytes(content)
    assert cache.read(SPEC) is not None


@pytest.mark.parametrize("text", ["[]", "3", '"kernel"', "null"])
def test_a_manifest_that_is_no_object_is_broken(text):
    cache.commit(link(compiled(SPEC)))
    (cache.entry_path(SPEC) / entry.MANIFEST).write_text(text)
    with pytest.raises(cache.BrokenEntry, match="not a JSON object"):
        cache.read(SPEC)


def test_an_entry_of_another_spec_is_broken():
    cache.commit(link(compiled(SPEC)))
    cache.entry_path(ForwardSpec()).parent.mkdir()
    shutil.copytree(cache.entry_path(SPEC), cache.entry_path(ForwardSpec()))
    with pytest.raises(cache.BrokenEntry, match="holds another spec"):
        cache.read(ForwardSpec())


def test_whoever_commits_second_keeps_the_entry_of_the_first():
    cache.commit(link(compiled(SPEC, "first")))
    assert cache.commit(link(compiled(SPEC, "second"))).ptx == "first"


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["making the directory", "writing the shared object", "renaming it into place"])
def test_on_a_full_disk_the_kernel_lives_in_memory_with_a_warning(where, compiles, monkeypatch, empty_cache):
    with monkeypatch.context() as patch:
        if where == "making the directory":
            patch.setattr(entry.Path, "mkdir", full)
        elif where == "writing the shared object":
            write = entry.Path.write_bytes
            patch.setattr(
                entry.Path, "write_bytes", lambda self, data: (full if ".new-" in str(self) else write)(self, data)
            )
        else:
            patch.setattr(entry.os, "rename", full)
        with pytest.warns(UserWarning, match="live in memory only: .*No space left") as seen:
            first = launch.kernel(SPEC, "sim")
    assert len(seen) == 1
    assert first.ptx == "// ptx"
    assert launch.kernel(SPEC, "sim") is first
    assert compiles == [SPEC]
    assert not list(empty_cache.rglob("kernel.*")), "nothing half-written stays"


def test_a_linker_without_space_is_a_full_disk(monkeypatch, tmp_path):
    linker = tmp_path / "linker"
    linker.write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device' >&2; exit 1\n")
    linker.chmod(0o755)
    monkeypatch.setenv("CC", str(linker))
    with pytest.raises(OSError, match="No space left on device"):
        link(compiled(SPEC))


def test_a_missing_linker_is_named(monkeypatch):
    monkeypatch.setattr(entry.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"none of \$CC, cc, gcc, clang was found"):
        link(compiled(SPEC))


def test_the_ptx_is_compressed():
    text = "mov.b32 %r1, %r2;\n" * 1000
    found = cache.commit(link(compiled(SPEC, text)))
    packed = (found.directory / "kernel.ptx.z").read_bytes()
    assert len(packed) < len(text) / 10
    assert zlib.decompress(packed).decode() == text


# ---------------------------------------------------------------- modes


def test_cached_only_loads_what_is_there_and_raises_with_the_spec_and_the_command_for_the_rest(compiles, monkeypatch):
    obtain(SPEC)
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    assert obtain(SPEC).ptx == "// ptx"
    missing = ForwardSpec(head_dim=64, head_dim_v=64)
    with pytest.raises(KernelNotBuilt) as raised:
        obtain(missing)
    assert raised.value.spec == missing
    assert f"cute-attn build --spec '{missing.canonical()}' --output" in str(raised.value)
    assert compiles == [SPEC]


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "always")
    with pytest.raises(ValueError, match=r"CUTE_ATTN_CACHE_MODE must be one of jit, prefer-cached, cached-only, got"):
        obtain(SPEC)


def test_without_the_compiler_the_error_says_how_the_kernel_is_built(monkeypatch):
    from cute_attn.jit import obtain as module

    def missing(spec):
        raise ModuleNotFoundError("No module named 'cutlass'", name="cutlass.cute")

    monkeypatch.setattr(module, "compile", missing)
    with pytest.raises(KernelNotBuilt, match="the compiler, is not installed"):
        obtain(SPEC)


# ---------------------------------------------------------------- prune


def test_prune_removes_what_dead_writers_and_broken_entries_left(empty_cache):
    kept = cache.commit(link(compiled(SPEC))).directory
    abandoned, fresh, broken = (kept.parent / name for name in (".new-old", ".new-now", ".broken-x"))
    for path in (abandoned, fresh, broken):
        path.mkdir()
    os.utime(abandoned, (0, 0))
    assert cache.prune(empty_cache) == [broken, abandoned]
    assert sorted(p.name for p in kept.parent.iterdir()) == [".new-now", kept.name]


def test_prune_removes_entries_by_age_and_those_of_other_sources(empty_cache, monkeypatch):
    old, young = ForwardSpec(), ForwardSpec(sink=True)
    paths = [cache.commit(link(compiled(spec))).directory for spec in (old, young)]
    os.utime(paths[0], (0, 0))
    assert cache.prune(empty_cache, older_than=86400.0) == [paths[0]]
    assert cache.prune(empty_cache, outdated=True) == []
    monkeypatch.setattr("cute_attn.jit.fingerprint._sources", lambda parts: "other")
    assert cache.prune(empty_cache, outdated=True) == [paths[1]]
