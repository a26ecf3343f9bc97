"""The C stub that stands in for the CUDA runtime: built once, found again, refused with advice without a compiler."""

import ctypes
import shutil

import pytest

from cute_attn.errors import Unavailable
from cute_attn.sim.host import stub


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_stub_is_compiled_once_into_the_cache_directory(empty_cache):
    code = stub.code()
    (kept,) = (empty_cache / "sim").iterdir()  # no scratch file stays behind
    built = kept.stat().st_mtime_ns
    assert stub.code() == kept.read_bytes() == code
    assert kept.stat().st_mtime_ns == built


def test_another_source_gives_another_file(empty_cache, tmp_path, monkeypatch):
    first = stub.code()
    changed = tmp_path / "stub.c"
    changed.write_text(stub.SOURCE.read_text() + "\nint one_more;\n")
    monkeypatch.setattr(stub, "SOURCE", changed)
    assert stub.code() != first
    assert len(list((empty_cache / "sim").iterdir())) == 2


def test_without_a_compiler_the_error_says_what_to_install(empty_cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match=r"needs a C compiler.*apt install gcc"):
        stub.code()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(empty_cache, monkeypatch, tmp_path):
    broken = tmp_path / "broken.c"
    broken.write_text("not C")
    monkeypatch.setattr(stub, "SOURCE", broken)
    with pytest.raises(Unavailable, match=r"could not build its launch stub with .*broken\.c"):
        stub.code()
    assert not list(empty_cache.rglob("stub*.so"))


def test_every_runtime_symbol_has_a_stand_in_of_equal_length():
    library = stub.library()
    for symbol in stub.SYMBOLS:
        name = stub.renamed(symbol)
        assert len(name) == len(symbol)
        assert name != symbol
        assert ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert stub.retargeted(b"\0" + symbol.encode() + b"\0") == b"\0" + name.encode() + b"\0"


def test_unknown_device_attributes_are_refused_not_guessed():
    value = ctypes.c_int(-7)
    attribute = stub.library()._cadaDeviceGetAttribute
    assert attribute(ctypes.byref(value), 97, 0) == 0
    assert value.value == 232448
    assert attribute(ctypes.byref(value), 12345, 0) != 0
    assert value.value == 232448
