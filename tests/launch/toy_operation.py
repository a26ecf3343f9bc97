"""A third operation: `out = factor * x`, as a row in the table and nothing else. Importing this registers it."""

from dataclasses import dataclass, field
from pathlib import Path

from cute_attn.spec import canonical as text_of
from cute_attn.spec.operation import Operation, register


@dataclass(frozen=True)
class ToyTile:
    """threads: of a CTA."""

    threads: int = 128

    m = n = 1


@dataclass(frozen=True)
class ToySpec:
    dtype: str = "fp32"
    tile: ToyTile = field(default_factory=ToyTile)

    op = "toy"

    def canonical(self):
        return text_of.canonical(self)

    def __str__(self):
        return f"toy {self.dtype}; {self.tile.threads} threads"


def check(spec):
    if spec.tile.threads > 1024:
        raise ValueError(f"ToyTile.threads must be at most 1024, got {spec.tile.threads}")


def program(spec):
    from toy_kernel import ToyKernel, fake_arguments

    return ToyKernel(spec), fake_arguments()


TOY = Operation(
    name="toy",
    title="a multiple of a vector",
    sources=lambda spec: (str(Path(__file__).with_name("toy_kernel.py")),),
    head_dims=((128, 128),),
    spec=ToySpec,
    parse=lambda text: text_of.parse(ToySpec, "toy", text),
    check=check,
    program=program,
    shared_memory_bytes=lambda spec: 0,
    forms=lambda mask, score, variant: (mask, score),
    table=lambda schedule: schedule.forward,
    depth=lambda head_dim, head_dim_v: 0,
    call=lambda *problem: lambda: None,
    tile=ToyTile,
    default_tile=lambda head_dim, head_dim_v: ToyTile(),
    graph_tile=lambda head_dim, head_dim_v: ToyTile(),
    tiles=lambda: [ToyTile(threads) for threads in (64, 128, 2048)],
    is_tuned=False,
)
register(TOY)
