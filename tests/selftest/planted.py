"""A bundle with faults: small kernels, of which one computes something else, one never returns and one dies."""

import hashlib
import subprocess

from cute_attn.jit import cache
from cute_attn.jit.entry import Entry, write
from cute_attn.jit.fingerprint import made_from
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import TileConfig

NARROW = TileConfig(128, 32)  # compiles in half the time
SPECS = {
    "full": ForwardSpec(tile=NARROW),
    "bounded": ForwardSpec(mask=MaskForm(True), tile=NARROW),
    "wrong": ForwardSpec(mask=MaskForm(True), score=ScoreForm("softcap"), tile=NARROW),
    "hangs": ForwardSpec(mask=MaskForm(True), dtype="fp16", tile=NARROW),
    "dies": ForwardSpec(dtype="fp16", tile=NARROW),
}
HANGS, DIES = "for (;;) pause();", "__builtin_trap();"


def faulty_bundle(root):
    """At `root`: full and bounded as they are; wrong has the code of bounded, which knows no softcap."""
    full, bounded = (cached_or_compiled(SPECS[name]) for name in ("full", "bounded"))
    codes = {
        "wrong": bounded.shared_object,
        "hangs": _shared_object(HANGS, root),
        "dies": _shared_object(DIES, root),
    }
    planted = (_with(bounded, SPECS[name], code) for name, code in codes.items())
    for entry in (full, bounded, *planted):
        write(entry, cache.entry_path(entry.spec, root))
    return root


def _with(entry, spec, shared_object):
    """The entry as one of another spec, with other host code, and a manifest that says so."""
    hashes = {**entry.manifest["sha256"], "kernel.so": hashlib.sha256(shared_object).hexdigest()}
    told = {"spec": spec.canonical(), "made_from": made_from(spec), "sha256": hashes}
    return Entry(spec, shared_object, entry.packed_ptx, {**entry.manifest, **told})


def _shared_object(body, root):
    root.mkdir(exist_ok=True)
    target = root / "planted.so"
    source = f"#include <unistd.h>\nint __tvm_ffi_kernel(void) {{ {body} return 0; }}"
    command = ["cc", "-O0", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=source.encode(), check=True)
    code = target.read_bytes()
    target.unlink()
    return code
