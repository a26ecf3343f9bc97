"""The backward of attention: three kernels, one after another on a stream."""

import cuda.bindings.driver as cuda
import cutlass.cute as cute
from cutlass import const_expr

from cute_attn.spec.backward import BackwardSpec

from .arguments import Scalars, Schedule, Tensors
from .kernel import MainKernel
from .postprocess import Postprocess
from .preprocess import Preprocess

__all__ = ["BackwardKernels"]


class BackwardKernels:
    """Compiled by `cute_attn.jit` for a spec; see `arguments` for what it is called with."""

    def __init__(self, spec: BackwardSpec) -> None:
        self.spec = spec

    @cute.jit
    def __call__(self, tensors: Tensors, schedule: Schedule, scalars: Scalars, stream: cuda.CUstream):
        Preprocess(self.spec).launch(tensors, schedule, stream)
        MainKernel(self.spec).launch(tensors, schedule, scalars, stream)
        if const_expr(self.spec.dq):
            Postprocess(self.spec).launch(tensors, schedule, scalars, stream)
