"""A bundle with faults: small kernels, of which one computes something else, one never returns and one dies."""

import subprocess

from cute_attn.jit import cache
from cute_attn.jit.entry import Entry, write
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.tiles import TileConfig

NARROW = TileConfig(128, 32)  # compiles in half the time
SPECS = {
    "full": ForwardSpec(tile=NARROW),
    "causal": ForwardSpec(mask=MaskForm(1), tile=NARROW),
    "window": ForwardSpec(mask=MaskForm(1, True), tile=NARROW),
    "prefix": ForwardSpec(mask=MaskForm(2, True), tile=NARROW),
    "slices": ForwardSpec(mask=MaskForm("many", True), tile=NARROW),
}
HANGS, DIES = "for (;;) pause();", "__builtin_trap();"


def faulty_bundle(root):
    """At `root`: full and causal as they are; window has causal's code, prefix hangs, slices dies."""
    entries = {name: cached_or_compiled(spec) for name, spec in SPECS.items()}
    causal = entries["causal"]
    entries["window"] = _with(entries["window"], causal.shared_object, causal.packed_ptx)
    for name, body in (("prefix", HANGS), ("slices", DIES)):
        entries[name] = _with(entries[name], _shared_object(body, root), entries[name].packed_ptx)
    for entry in entries.values():
        write(entry, cache.entry_path(entry.spec, root))
    return root


def _with(entry, shared_object, packed_ptx):
    """The entry with other files, and a manifest that says so."""
    import hashlib

    hashes = {
        **entry.manifest["sha256"],
        "kernel.so": hashlib.sha256(shared_object).hexdigest(),
        "kernel.ptx.z": hashlib.sha256(packed_ptx).hexdigest(),
    }
    return Entry(entry.spec, shared_object, packed_ptx, {**entry.manifest, "sha256": hashes})


def _shared_object(body, root):
    root.mkdir(exist_ok=True)
    target = root / "planted.so"
    source = f"#include <unistd.h>\nint __tvm_ffi_kernel(void) {{ {body} return 0; }}"
    command = ["cc", "-O0", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=source.encode(), check=True)
    code = target.read_bytes()
    target.unlink()
    return code
