"""Mutations of the products of stored tiles ("gram"): `x` is the tile, which all warps store, every product reads."""

from mutations import Mutation, drop, insert, move, repeat, substitute

COMMIT = "wgmma.commit_group.sync.aligned;"
FENCE = r"fence\.proxy\.async\.shared::cta"
PRODUCT = r"wgmma\.(mma_async\S+ \{(%r\d+),)"
READ = r"wgmma.wait_group.sync.aligned 0; { .reg .b32 seen; mov.b32 seen, \2; }"
ACCUMULATOR = r"(mma_async\S+ \{)(%r\d+), (%r\d+),"

GRAM = [
    # ---- order of stores before products
    Mutation(
        "no barrier between the tile's stores and its products", "gram", "stores before products", "harmful",
        "every warp multiplies with rows that the others stored; that all come by the WGMMA orders nothing",
        (drop("tile stored", r"bar\.sync"),), ("x",),
    ),
    Mutation(
        "pairs of warps meet before the products", "gram", "stores before products", "harmful",
        "the stores of the other pair are not ordered",
        (substitute("tile stored", r"bar\.sync (\s*)1, 128;",
                    "{ .reg .b32 pair; mov.u32 pair, %tid.x; shr.u32 pair, pair, 6; add.u32 pair, pair, 2; "
                    "bar.sync pair, 64; }"),), ("x",),
    ),
    Mutation(
        "products may start before they are told of the stores", "gram", "stores before products", "harmful",
        "an arrival says that the others may go on, and waits for nobody",
        (substitute("tile stored", r"bar\.sync (\s*)1, 128;", "bar.arrive 2, 256;"),), ("x", "barrier 2"),
    ),
    Mutation(
        "a second barrier before the products", "gram", "more barriers", "benign",
        "all warps wait once more", (repeat("tile stored", r"bar\.sync"),),
    ),
    # ---- fences
    Mutation(
        "no proxy fence before the products", "gram", "missing proxy fence", "harmful",
        "WGMMA reads through the async proxy", (drop("fence", FENCE),), ("x",),
    ),
    Mutation(
        "proxy fence of global memory before the products", "gram", "wrong fence space", "harmful",
        "the stores are to shared memory", (substitute("fence", FENCE, "fence.proxy.async.global"),), ("x",),
    ),
    Mutation(
        "alias fence before the products", "gram", "wrong fence space", "harmful",
        "it orders accesses through two addresses of one place, not through two proxies",
        (substitute("fence", FENCE, "fence.proxy.alias"),), ("x",),
    ),
    Mutation(
        "memory fence before the products", "gram", "wrong fence space", "harmful",
        "it orders ordinary accesses only", (substitute("fence", FENCE, "fence.acq_rel.cta"),), ("x",),
    ),
    Mutation(
        "proxy fence of all spaces before the products", "gram", "more fences", "benign",
        "shared memory is among them", (substitute("fence", FENCE, "fence.proxy.async"),),
    ),
    Mutation(
        "proxy fence of the cluster's memory before the products", "gram", "more fences", "benign",
        "the CTA's own is a part of it", (substitute("fence", FENCE, "fence.proxy.async.shared::cluster"),),
    ),
    Mutation(
        "proxy fence behind the barrier", "gram", "order", "benign",
        "each warp fences between the barrier that orders the stores and its own product",
        (move("fence", FENCE, r"bar\.sync"),),
    ),
    # ---- groups on one accumulator
    Mutation(
        "first step of the product in a group of its own", "gram", "groups on an accumulator", "benign",
        "products of one shape on one accumulator run in order, also this one, which overwrites it",
        (insert("first product", r"mov\.b32\s+%r\d+, 1;", COMMIT),),
    ),
    Mutation(
        "both products in one group of their own", "gram", "groups on an accumulator", "benign",
        "there is one wait for both", (drop("first product", r"wgmma\.commit_group"),),
    ),
    Mutation(
        "second product waits for the first", "gram", "stronger wait", "benign",
        "they run in order anyway",
        (insert("second product", r"\S", "wgmma.wait_group.sync.aligned 0;"),),
    ),
    Mutation(
        "accumulator read between the products", "gram", "accumulator touched early", "harmful",
        "the second product may overwrite it before it is read",
        (substitute("second product", PRODUCT, rf"{READ} wgmma.\1"),), ("registers",),
    ),
    Mutation(
        "accumulator read between the products, and a fence behind it", "gram", "more fences", "benign",
        "the fence orders the read before the product",
        (substitute("second product", PRODUCT, rf"{READ} wgmma.fence.sync.aligned; wgmma.\1"),),
    ),
    Mutation(
        "second product on the accumulator's registers in another order", "gram", "groups on an accumulator", "harmful",
        "only products on the same accumulator are ordered among themselves",
        (substitute("second product", ACCUMULATOR, r"\1\3, \2,"),), ("registers",),
    ),
]  # fmt: skip
