"""How the simulator lays out address spaces."""

RANK_SHIFT = 24  # a shared address names its CTA of the cluster above its offset
OFFSET_MASK = (1 << RANK_SHIFT) - 1
SHARED_START = 1024  # the hardware keeps the first KiB of every CTA's shared memory
# windows of the generic address space; everything else is global
GENERIC_SHARED = 1 << 56
PARAM_BASE = 1 << 57
GENERIC_LOCAL = 1 << 58
