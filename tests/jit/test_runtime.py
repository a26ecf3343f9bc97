"""Which library is taken for the CUDA runtime of the DSL, and how compiled code is loaded without a file."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cute_attn import loadable
from cute_attn.errors import Unavailable
from cute_attn.jit import runtime
from cute_attn.jit.runtime import runtime_library

HERE = Path(sys.executable).read_bytes()[:20]
OTHER = HERE[:18] + (0xB7 if HERE[18] != 0xB7 else 0x3E).to_bytes(2, "little")  # as GPU machines differ


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts libraries into a package nvidia_cutlass_dsl, which is the only one."""

    def install(**headers):
        for folder, header in headers.items():
            path = tmp_path / folder.replace("_", "/") / "libcute_dsl_runtime.so"
            path.parent.mkdir(parents=True)
            path.write_bytes(header)
        monkeypatch.setattr(runtime, "folders_of", lambda package: [tmp_path])
        return tmp_path

    return install


def test_the_runtime_is_that_of_this_processor_and_never_a_stub(installed):
    root = installed(cu12_stubs_a=HERE, cu12_another=OTHER, cu12_lib=HERE, cu13_lib=HERE, cu12_aaa=b"text")
    assert runtime_library() == root / "cu12" / "lib" / "libcute_dsl_runtime.so"


def test_a_runtime_for_another_processor_alone_is_refused_by_name(installed):
    installed(cu12_lib=OTHER)
    with pytest.raises(Unavailable, match=r"which nvidia-cutlass-dsl brings; there is one for (aarch64|x86_64), and"):
        runtime_library()


def test_no_runtime_at_all_is_refused(installed):
    installed()
    with pytest.raises(Unavailable, match=r"needs libcute_dsl_runtime.so, which nvidia-cutlass-dsl brings$"):
        runtime_library()


# ---------------------------------------------------------------- code without a file


def shared_object(name):
    """With one function of that name, which does nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "source.c", Path(scratch) / "target.so"
        source.write_text(f"int __tvm_ffi_{name}(void) {{ return 0; }}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)
        return target.read_bytes()


def no_memory(name):
    raise OSError(errno.ENOSYS, "no files in memory")


@pytest.fixture(params=["in memory", "in a temporary file"])
def place(request, monkeypatch):
    if request.param == "in a temporary file":
        monkeypatch.setattr(os, "memfd_create", no_memory)
    return request.param


def test_two_kernels_are_loaded_each_as_itself_and_leave_no_file(place, tmp_path, monkeypatch):
    monkeypatch.setattr(loadable.tempfile, "tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    names = ("kernel", "other", "kernel")
    modules = [loadable.load_module(shared_object(name)) for name in names]
    assert [module.get_function(name)() for module, name in zip(modules, names, strict=True)] == [None] * 3
    assert set(os.listdir("/proc/self/fd")) == before
    assert not list(tmp_path.iterdir())


def test_where_no_place_may_be_executed_the_error_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(loadable.mmap, "mmap", refuse)
    monkeypatch.setattr(loadable.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PermissionError, match=r"files there cannot be executed.*TMPDIR names another place"):
        loadable.load_module(shared_object("kernel"))
