"""Runs a few lines of PTX through the simulator: the frame of a kernel round them, arrays in, arrays out."""

import struct

import numpy as np

from cute_attn.sim.launch import Buffer, Launch, Schedule
from cute_attn.sim.schedules.engine import execute

REGISTERS = """
    .reg .pred %p<64>;
    .reg .b16 %h<64>;
    .reg .b32 %r<512>;
    .reg .b64 %d<64>;
    .reg .b32 %t, %lane, %warp;
    .reg .b64 %a<8>, %o;
"""
FILE = {1: "h", 2: "h", 4: "r", 8: "d"}


def frame(body, parameters, shared="", declarations="", directives=""):
    """The text of a module: `parameters` is 'pointer' or a number of bytes, each. Pointers arrive in %a0, %a1, ...

    %t is threadIdx.x, %lane and %warp what they say; `smem` names the dynamic shared memory.
    """
    listed = [
        f".param .u64 p{i}" if p == "pointer" else f".param .align 64 .b8 p{i}[{p}]" for i, p in enumerate(parameters)
    ]
    loads = [f"ld.param.u64 %a{i}, [p{i}];" for i, p in enumerate(parameters) if p == "pointer"]
    return f"""
.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry kernel({", ".join(listed)})
{directives}
{{
    {REGISTERS}
    {declarations}
    {shared}
    {" ".join(loads)}
    mov.u32 %t, %tid.x;
    mov.u32 %lane, %laneid;
    shr.u32 %warp, %t, 5;
    {body}
    ret;
}}
"""


def run(
    body,
    *arguments,
    block=32,
    grid=1,
    cluster=1,
    smem=0,
    mode="eager",
    seed=0,
    unwritten=(),
    shared="",
    declarations="",
    directives="",
    workers=1,
    warned=(),
    recorder=None,
    races=False,
    fixed_sums=False,
):
    """Runs `body` with NumPy arrays (passed as pointers, written in place) and bytes (passed by value); the report."""
    parameters = ["pointer" if isinstance(a, np.ndarray) else len(a) for a in arguments]
    raw = tuple(struct.pack("<Q", a.ctypes.data) if isinstance(a, np.ndarray) else bytes(a) for a in arguments)
    buffers = []
    for i, a in enumerate(arguments):
        if isinstance(a, np.ndarray):
            shadow = np.ones(a.nbytes, bool) if i in unwritten else None
            buffers.append(Buffer(a.ctypes.data, a.reshape(-1).view(np.uint8), f"argument {i}", shadow))
    ptx = frame(body, parameters, shared, declarations, directives)
    launch = Launch("kernel", ptx, (grid, 1, 1), (block, 1, 1), (cluster, 1, 1), smem, raw)
    return execute(launch, buffers, Schedule(mode, seed, races, fixed_sums), workers, warned, recorder)


def compute(lines, *inputs, result, block=128, mode="eager"):
    """What `lines` leave in %y in each of 128 threads, from their elements of the inputs in %x0, %x1, ..."""
    inputs = [np.resize(np.asarray(x), block) for x in inputs]
    out = np.zeros(block, result)
    body, declared = [], [f".reg .b{max(out.itemsize * 8, 16)} %y;"]
    for i, x in enumerate(inputs):
        bits = x.itemsize * 8
        declared.append(f".reg .b{max(bits, 16)} %x{i};")
        body += [f"mad.wide.u32 %o, %t, {x.itemsize}, %a{i + 1};", f"ld.global.b{bits} %x{i}, [%o];"]
    body += [lines, f"mad.wide.u32 %o, %t, {out.itemsize}, %a0;", f"st.global.b{out.itemsize * 8} [%o], %y;"]
    run("\n".join(body), out, *inputs, block=block, mode=mode, declarations=" ".join(declared))
    return out


def tensor_map(array, box, *, swizzle=0, kind=None, sizes=None, strides=None):
    """The 128 bytes of a tensor map of a NumPy array (last axis fastest), as the DSL writes them."""
    kinds = {"uint8": 0, "uint32": 2, "int32": 2, "float16": 6, "float32": 7, "uint16": 10}
    rank = array.ndim
    sizes = list(array.shape[::-1]) if sizes is None else sizes
    strides = list(array.strides[::-1]) if strides is None else strides
    words = [0] * 16
    words[0], words[1] = array.ctypes.data & 0xFFFFFFFF, array.ctypes.data >> 32
    code = kinds[array.dtype.name] if kind is None else kind
    words[2] = 2 | (rank - 1) << 4 | code << 7 | {0: 0, 32: 1, 64: 2, 128: 3}[swizzle] << 13
    for i in range(1, rank):
        words[2 + i] = strides[i] // 16
    for i in range(rank):
        words[8 + i] = sizes[i] - 1
    boxes = [b - 1 for b in box[::-1]] + [0] * (5 - rank)
    words[13] = boxes[0] << 24
    words[14] = boxes[1] | boxes[2] << 8 | boxes[3] << 16 | boxes[4] << 24
    return struct.pack("<16I", *words) + bytes(64)


def bf16(x):
    """float32 to the bits of bfloat16, round to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)
