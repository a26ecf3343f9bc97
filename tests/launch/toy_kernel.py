"""The kernel of the toy operation."""

import cuda.bindings.driver as cuda
import cutlass.cute as cute
from cutlass import Float32


class ToyKernel:
    def __init__(self, spec) -> None:
        self.spec = spec

    @cute.jit
    def __call__(self, x: cute.Tensor, out: cute.Tensor, factor: Float32, stream: cuda.CUstream):
        threads = self.spec.tile.threads
        self.kernel(x, out, factor).launch(
            grid=(cute.ceil_div(out.shape[0], threads), 1, 1), block=(threads, 1, 1), stream=stream
        )

    @cute.kernel
    def kernel(self, x: cute.Tensor, out: cute.Tensor, factor: Float32):
        i = cute.arch.block_idx()[0] * cute.arch.block_dim()[0] + cute.arch.thread_idx()[0]
        if i < out.shape[0]:
            out[i] = x[i] * factor


def fake_arguments():
    length = cute.sym_int()
    vectors = (cute.runtime.make_fake_tensor(Float32, (length,), (1,)) for _ in range(2))
    return *vectors, Float32(1.0), cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
