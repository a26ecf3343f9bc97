"""One line of JSON about this machine, and what cute_attn finds on it."""

from __future__ import annotations

import json
import os
import platform
import sys

import torch

from cute_attn.jit.bundle import bundles
from cute_attn.launch.run import kernel
from cute_attn.packages import versions_of
from cute_attn.spec.operation import Spec

PACKAGES = ("numpy", "triton", "apache-tvm-ffi", "nvidia-cutlass-dsl", "platformdirs", "click", "rich", "pytest")


def loaded_libraries(spec: Spec) -> list[str]:
    """Paths of the DSL's runtime library and of the driver, after a kernel was loaded."""
    kernel(spec, "sm90")
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1] for line in maps if "cute_dsl_runtime" in line or "libcuda.so" in line})


def main() -> int:
    found: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {"torch": torch.__version__, "CUDA of torch": torch.version.cuda, "cores": os.cpu_count()}
    found |= dict.fromkeys(PACKAGES, "not installed") | versions_of(PACKAGES)
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "multiprocessors": gpu.multi_processor_count, "L2": gpu.L2_cache_size}
        found["cuDNN"] = torch.backends.cudnn.version()
    problems = [reason for bundle in bundles() if (reason := bundle.unused_because(any_compiler=True))]
    specs = [spec for bundle in bundles() for spec in bundle.specs]
    found["kernels"] = len(specs)
    problems += [] if specs else ["there is no bundle"]
    try:
        found["libraries"] = loaded_libraries(specs[0]) if specs else []
    except (RuntimeError, OSError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    status, detail = ("wrong" if problems else "right"), "; ".join(problems)
    print(json.dumps({"case": "environment", "status": status, "detail": detail, "found": found}), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries that were loaded for a look need not be taken down in order
