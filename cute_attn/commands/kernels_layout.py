"""The folder that Hugging Face's loader `kernels` takes: in each of its variants the library and a metadata.json.

`torch-cuda` is Python alone and compiles what it is asked for; the variant made of a bundle is for one CUDA and
processor, and the loader prefers it where it fits. In both the library lies below the module that is loaded, whose name
the loader chooses: its imports are relative there (`renamed.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cute_attn

from ..jit import cache
from ..jit.build import verify
from ..jit.bundle import difference
from ..jit.entry import OtherFormat, read_manifest, spec_of
from ..jit.runtime import machine_of
from ..renamed import relative

__all__ = ["write_kernels_layout"]

PACKAGE = Path(cute_attn.__file__).parent
# What only a person at a terminal uses, and with it click and rich.
LEFT_OUT = ("cli.py", "commands", "selftest", "__pycache__")
# Of those names that the loader knows; PyTorch it asks for itself, and NumPy, cuda-python and filelock come with these.
PYTHON_DEPENDS = ["nvidia-cutlass-dsl", "tvm-ffi"]
LOADER = "0.17.2"  # the oldest `kernels` that was tried
PURE = "torch-cuda"
# PyTorch 2.9 or newer, CUDA of that major version and at least that minor one; ours links no symbol of PyTorch.
AHEAD_OF_TIME = "torch-stable-abi29-{cuda}-{machine}-linux"
CUDA = {"nvidia-cutlass-dsl-libs-cu13": "cu130", "nvidia-cutlass-dsl-libs-cu12": "cu126"}  # the compiler's; new first

_NAMES = "flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache"
INIT = f'''"""cute_attn {cute_attn.__version__} as a kernel of the Hugging Face Hub; written by `cute-attn package`."""

from . import cute_attn
from .cute_attn.integrations.hub import {_NAMES}

__all__ = ["cute_attn", {", ".join(f'"{name}"' for name in _NAMES.split(", "))}]
'''
LOAD_BUNDLE = """
from pathlib import Path

cute_attn.load_bundle(Path(__file__).parent / "bundle")
"""
README = f"""---
library_name: kernels
license: apache-2.0
---

# cute_attn {cute_attn.__version__}

Exact attention under irregular masks on NVIDIA Hopper. `{_NAMES.replace(", ", "`, `")}` take
FlashAttention's arguments; the whole library is `cute_attn` of the module that is loaded.

```python
from pathlib import Path

from kernels import get_local_kernel

kernel = get_local_kernel(Path("this folder"))
out = kernel.flash_attn_func(q, k, v, causal=True)
out, lse = kernel.cute_attn.flex_flash_attn_func(q[0], k[0], v[0], kernel.cute_attn.mask.causal(q.shape[1]))
```
"""


def write_kernels_layout(output: Path, bundle: Path | None) -> list[Path]:
    """Writes the folder, and returns its variants.

    Args:
        output: empty, or yet to be made.
        bundle: its kernels make a second variant; None: the one of Python alone.

    Raises ValueError for a bundle of which a kernel is broken, of other sources, of no known CUDA, or for another
    processor than the others; OSError where something cannot be read or written.
    """
    kernels = [] if bundle is None else _sound(bundle)
    ahead = _variant_of(kernels) if kernels else ""
    variants = [output / "build" / name for name in (PURE, ahead) if name]
    for variant in variants:
        variant.mkdir(parents=True)
        _write_library(variant / "cute_attn")
        (variant / "__init__.py").write_text(INIT + LOAD_BUNDLE * (variant.name == ahead))
    for kernel in kernels:
        shutil.copytree(kernel, variants[-1] / "bundle" / kernel.relative_to(bundle or kernel))
    for variant in variants:
        (variant / "metadata.json").write_text(json.dumps(_metadata(variant), indent=2) + "\n")
    (output / "README.md").write_text(README)
    return variants


def _write_library(target: Path) -> None:
    """The package, importing itself by relative imports alone."""
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for file in target.rglob("*.py"):
        text = file.read_bytes().decode()
        file.write_bytes(relative(text, len(file.relative_to(target).parts) - 1).encode())


def _sound(bundle: Path) -> list[Path]:
    """The entries of a bundle, all of which this library would use."""
    entries = cache.entry_directories(bundle)
    if not entries:
        raise ValueError(f"{bundle} holds no compiled kernels: a bundle is what `cute-attn build --output` wrote")
    for entry in entries:
        if problem := verify(entry):
            raise ValueError(f"a kernel of the bundle {bundle} is broken: {problem}")
        manifest = read_manifest(entry)
        try:
            problem = difference(manifest, spec_of(manifest), any_compiler=True)
        except OtherFormat as error:
            problem = str(error)
        if problem:
            raise ValueError(f"a kernel of the bundle {bundle} is none of this cute_attn's: {problem}")
    return entries


def _variant_of(kernels: list[Path]) -> str:
    """The variant whose machines run all of these kernels."""
    packages = {name for kernel in kernels for name in read_manifest(kernel)["made_from"]["packages"]}
    made_with = [name for name in CUDA if name in packages]
    machines = sorted({machine_of(kernel / "kernel.so") for kernel in kernels})
    if not made_with:
        raise ValueError(f"kernels must be made with {' or '.join(CUDA)}, got {', '.join(sorted(packages))}")
    if len(machines) > 1:
        raise ValueError(f"the kernels of a bundle must be for one processor, got {' and '.join(machines)}")
    return AHEAD_OF_TIME.format(cuda=CUDA[made_with[0]], machine=machines[0])


def _metadata(variant: Path) -> dict[str, Any]:
    files = sorted(path for path in variant.rglob("*") if path.is_file())
    sums = {str(path.relative_to(variant)): _sha256(path) for path in files}
    unique = hashlib.sha256(json.dumps([variant.name, sums]).encode()).hexdigest()[:12]
    return {
        "name": "cute-attn",
        "id": f"cute_attn_cuda_{unique}",  # of the module, and of its custom ops: of other contents, another
        "version": int(cute_attn.__version__.partition(".")[0]),
        "kernels-minver": LOADER,
        "license": "Apache-2.0",
        "python-depends": PYTHON_DEPENDS,
        "backend": {"type": "cuda", "archs": ["9.0a"]},
        "digest": {"algorithm": "sha256", "files": sums},
    }


def _sha256(path: Path) -> str:
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
