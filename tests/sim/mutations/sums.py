"""Mutations of the elementwise kernel ("elementwise") and of the reductions ("sums").

`partial` is the shared memory that the bulk reduction reads.
"""

from mutations import Mutation, drop, repeat, rewrite, substitute

INDEX = r"(or\.b32\s+(%r\d+), .*;)"
FMA = r"fma\.rn\.f32\s+(%r\d+), (%r\d+), (%r\d+), (%r\d+);"


def pair(parts: str) -> str:
    """The product and the sum with two operands from one register."""
    moves = r"mov.b32 both.x, \3; mov.b32 both.y, \4;"
    return rf"{{ .reg .v2 .f32 both; {moves} fma.rn.f32 \1, \2, {parts}; }}"


ELEMENTWISE = [
    Mutation(
        "one element too many", "elementwise", "out of bounds", "harmful",
        "the thread behind the last element reads and writes it",
        (rewrite(r"setp\.le\.s32", "setp.lt.s32"),), ("global address",),
    ),
    Mutation(
        "index clamped at zero", "elementwise", "clamped numbers", "benign",
        "it is not negative", (rewrite(INDEX, r"\1 max.relu.s32 \2, \2, \2;"),),
    ),
    Mutation(
        "index clamped at zero from above", "elementwise", "clamped numbers", "harmful",
        "every thread computes the first element", (rewrite(INDEX, r"\1 min.relu.s32 \2, \2, -1;"),), ("global out",),
    ),
    Mutation(
        "index not clamped at zero", "elementwise", "clamped numbers", "harmful",
        "-1 is before the first element", (rewrite(INDEX, r"\1 min.s32 \2, \2, -1;"),), ("global address",),
    ),
    Mutation(
        "operands in one vector register", "elementwise", "vector registers", "benign",
        "its parts are registers", (rewrite(FMA, pair("both.x, both.y")),),
    ),
    Mutation(
        "parts of a vector register change places", "elementwise", "vector registers", "harmful",
        "y is scaled in place of x", (rewrite(FMA, pair("both.y, both.x")),), ("global out",),
    ),
]  # fmt: skip

SUMS = [
    Mutation(
        "no proxy fence before the bulk reduction", "sums", "missing proxy fence", "harmful",
        "the async proxy reads what ordinary stores wrote", (drop("proxy fence", r"fence\.proxy"),), ("partial",),
    ),
    Mutation(
        "proxy fence of global memory before the bulk reduction", "sums", "wrong fence space", "harmful",
        "the async proxy reads shared memory",
        (substitute("proxy fence", r"async\.shared::cta", "async.global"),), ("partial",),
    ),
    Mutation(
        "no barrier before the bulk reduction", "sums", "removed wait", "harmful",
        "the other warps may not have stored their sums", (drop("block barrier", r"bar\.sync"),), ("partial",),
    ),
    Mutation(
        "every lane issues the bulk reduction", "sums", "reduction by all lanes", "harmful",
        "it is added 32 times",
        (rewrite(r"elect\.sync \s*%r36\|%p3, -1;", "setp.eq.b32 %p3, 0, 0;"),), ("partial", "global out"),
    ),
    Mutation(
        "two warps issue the bulk reduction", "sums", "reduction by all lanes", "harmful",
        "it is added twice", (rewrite(r"(setp\.gt\.u32 \s*%p2, %r1), 31", r"\1, 63"),), ("partial", "global out"),
    ),
    Mutation(
        "every lane adds the warp's sum", "sums", "reduction by all lanes", "harmful",
        "it is added 32 times", (rewrite(r"@%p1 bra .*", ""),), ("global total",),
    ),
    Mutation(
        "bulk reduction reads past its memory", "sums", "smem beyond request", "harmful",
        "16 bytes lie behind the memory that the launch asked for",
        (substitute("bulk add", "512", "528"),), ("beyond", "global address"),
    ),
    Mutation(
        "the last row of another tensor", "sums", "out of bounds", "harmful",
        "the offset leads a gigabyte on", (rewrite(r"\+3584\]", "+1073741824]"),), ("global address",),
    ),
    Mutation(
        "a load that straddles elements", "sums", "misaligned", "harmful",
        "a 4-byte load from an address that is 2 modulo 4", (rewrite(r"\+3584\]", "+3586]"),), ("global address",),
    ),
    Mutation(
        "sums stored one element on", "sums", "wrong offset", "harmful",
        "the first element is never written, the last lies behind the memory that the launch asked for",
        (substitute("partial sums store", r"(st\.shared\S* \s*\[%r\d+)\]", r"\1+4]"),), ("partial", "beyond"),
    ),
    Mutation(
        "shuffles within half of the warp", "sums", "wrong lanes", "harmful",
        "the last step adds a lane's own half once more",
        (rewrite(r"(shfl\.sync\.bfly\.b32 .*), 16, 31", r"\1, 8, 31"),), ("global total",),
    ),
    Mutation(
        "reduction that returns nothing", "sums", "equivalent", "benign",
        "red is atom without the old value", (rewrite(r"atom\.global\.add\.f32 \s*%r\d+, ", "red.global.add.f32 "),),
    ),
    Mutation(
        "a second block barrier", "sums", "more barriers", "benign",
        "all threads wait once more", (repeat("block barrier", r"bar\.sync"),),
    ),
    Mutation(
        "lane 0 issues instead of the elected one", "sums", "equivalent", "benign",
        "any one lane may", (rewrite(r"elect\.sync \s*%r36\|%p3, -1;", "setp.eq.b32 %p3, %r7, 0;"),),
    ),
]  # fmt: skip
