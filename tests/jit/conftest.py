"""Every test of the cache starts with an empty one; `compiles` puts a fake compiler behind it."""

import pytest
from fake_compiler import compiled


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No kernel anywhere: the user's cache is an empty directory, nothing is in memory, no bundle is loaded."""
    from cute_attn.jit import bundle
    from cute_attn.launch import run as launch

    for name in ("CUTE_ATTN_BUNDLES", "CUTE_ATTN_CACHE_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "_kernels", {})
    monkeypatch.setattr(bundle, "_loaded", [])
    return tmp_path / "cache"


@pytest.fixture
def compiles(monkeypatch):
    """Replaces the compiler and the loader; lists what is compiled."""
    from cute_attn.jit import obtain
    from cute_attn.launch import run as launch

    seen = []

    def compile(spec):
        seen.append(spec)
        return compiled(spec)

    monkeypatch.setattr(obtain, "compile", compile)
    monkeypatch.setattr(launch, "_open", lambda shared_object, runtime: shared_object)
    return seen
