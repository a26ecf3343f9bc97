"""A compiler that takes no time: what the tests of the cache put in the place of the real one."""

import shutil
import subprocess
import tempfile
from functools import cache

from cute_attn.jit.cache import entry_directories
from cute_attn.jit.compile import Compiled
from cute_attn.jit.entry import MANIFEST, _sealed, _unsealed
from cute_attn.jit.fingerprint import key_of

LOG = "ptxas info: 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nUsed 168 registers"


@cache
def object_file(name):
    source = f"int __tvm_ffi_{name}(void) {{ return 7; }}"
    with tempfile.NamedTemporaryFile(suffix=".o") as file:
        subprocess.run(["cc", "-c", "-fPIC", "-x", "c", "-", "-o", file.name], input=source.encode(), check=True)
        return file.read()


class Exported:
    """Stands for a compiled function: exports an object with one symbol."""

    def export_to_c(self, object_file_path, function_name):
        with open(object_file_path, "wb") as file:
            file.write(object_file(function_name))


def compiled(spec, ptx="// ptx"):
    return Compiled(spec, Exported(), ptx, b"", LOG)


def forget():
    """Empties the cache in memory, as a new process would find it."""
    from cute_attn.launch import run as launch

    launch._kernels.clear()


def altered(bundle, path, change):
    """A copy of a bundle whose only manifest was changed, and sealed and named anew."""
    shutil.copytree(bundle, path)
    (entry,) = entry_directories(path)
    manifest = _unsealed((entry / MANIFEST).read_text())
    change(manifest)
    (entry / MANIFEST).write_text(_sealed(manifest))
    entry.rename(entry.with_name(key_of(manifest["spec"], manifest["made_from"], manifest["format"])))
    return path
