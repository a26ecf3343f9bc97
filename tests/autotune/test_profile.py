"""Profiles of candidates: made once, kept beside the cache, and true to the machine code."""

import pytest

from autotune import profile as module
from autotune.profile import Loop, Profile, compile_profile
from cute_attn.directories import cache_directory
from cute_attn.jit import cache
from cute_attn.jit.compile import Compiled
from cute_attn.jit.entry import Entry
from cute_attn.spec.forward import ForwardSpec

SPEC = ForwardSpec(layers=1)
LOG = "0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads ptxas info: Used 168 registers"


@pytest.fixture
def compiles(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    seen = []

    def compile(spec):
        seen.append(spec)
        return Compiled(spec, None, "// ptx", b"", LOG)

    monkeypatch.setattr(module, "compile", compile)
    monkeypatch.setattr(module, "_loops", lambda compiled: (Loop(1024, 351),))
    kept = {}
    monkeypatch.setattr(module, "link", lambda compiled: Entry(compiled.spec, b"", b"", {}))
    monkeypatch.setattr(module.cache, "commit", lambda entry: kept.setdefault(entry.spec, entry))
    monkeypatch.setattr(module.cache, "read", kept.get)
    return seen


def test_a_profile_is_made_once_and_kept_beside_the_cache(compiles):
    first = compile_profile(SPEC)
    assert first == Profile(168, 24, (), (Loop(1024, 351),))
    assert compile_profile(SPEC) == first
    assert compiles == [SPEC]
    assert list((cache_directory() / "profiles").iterdir())


def test_a_profile_whose_kernel_is_gone_is_made_again(compiles, monkeypatch):
    compile_profile(SPEC)
    monkeypatch.setattr(module.cache, "read", lambda spec: None)
    compile_profile(SPEC)
    assert compiles == [SPEC, SPEC]


@pytest.mark.slow
def test_a_real_kernel_has_loops_with_the_products_of_its_tile(tmp_path, monkeypatch):
    from shutil import which

    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    found = compile_profile(ForwardSpec(head_dim=64, head_dim_v=64, layers=1))
    assert found.refusal == ""
    assert found.registers == 168
    assert cache.read(ForwardSpec(head_dim=64, head_dim_v=64, layers=1)) is not None
    if found.loops or which("nvdisasm"):
        tile = 64 * 128 * (64 + 64) // 2048  # cycles of one warpgroup's products for one tile of keys
        assert found.loops
        assert all(loop.tensor_cycles % tile == 0 and loop.slots > 0 for loop in found.loops)
