"""Mutations of rows that CTAs send each other ("exchange"): `inbox` is where st.async brings them, in two places."""

from mutations import Mutation, drop, insert, repeat_wait, skip_wait, substitute

SENT = r"(st\.async\S+ )\[(%r\d+)\], (\{.*\}), \[(%r\d+)\];"
OWN = "mov.u32 rank, %cluster_ctarank; mapa.shared::cluster.u32"


def sent(to: str = r"\2", values: str = r"\3", barrier: str = r"\4", before: str = "") -> str:
    """The instruction with something else in it."""
    return rf"{{ .reg .b32 rank, to, bar; {before} \1[{to}], {values}, [{barrier}]; }}"


EXCHANGE = [
    # ---- waits and releases
    Mutation(
        "receiver does not wait", "exchange", "removed wait", "harmful",
        "what is sent may still be under way", (skip_wait("wait full"),), ("inbox",),
    ),
    Mutation(
        "sender does not wait for a free place", "exchange", "removed wait", "harmful",
        "the row before may not have been read", (skip_wait("wait empty"),), ("inbox", "full", "global out"),
    ),
    Mutation(
        "place not released", "exchange", "dropped arrive", "harmful",
        "the sender waits for ever", (drop("release", r"mbarrier\.arrive"),), ("empty",),
    ),
    Mutation(
        "every lane releases the place", "exchange", "over-arrival", "harmful",
        "32 arrivals where one is expected", (drop("release", r"@%p\d+ bra"),), ("empty",),
    ),
    Mutation(
        "place released to oneself", "exchange", "wrong barrier", "harmful",
        "that I have read says nothing of the peer",
        (substitute("release", r"mapa\.shared::cluster\.u32 \s*(%r\d+), (%r\d+), %r\d+;",
                    r"mov.u32 \1, %cluster_ctarank; mapa.shared::cluster.u32 \1, \2, \1;"),),
        ("inbox", "full", "global out"),
    ),
    Mutation(
        "place released without order", "exchange", "weak release", "harmful",
        "reads may come behind an arrival that releases nothing",
        (substitute("release", r"arrive\.release", "arrive.relaxed"),), ("inbox",),
    ),
    Mutation(
        "CTA may leave while the peer still sends", "exchange", "removed wait", "harmful",
        "shared memory of a CTA that is gone",
        (drop("end", r"barrier\.cluster\.arrive"), drop("end", r"barrier\.cluster\.wait")), ("ended CTA",),
    ),
    Mutation(
        "receiver waits twice", "exchange", "more waits", "benign", "the phase is over", (repeat_wait("wait full"),),
    ),
    # ---- bytes
    Mutation(
        "fewer bytes expected than are sent", "exchange", "transaction count", "harmful",
        "the last value is not waited for", (substitute("expect", "2048", "2044"),), ("full",),
    ),
    Mutation(
        "more bytes expected than are sent", "exchange", "transaction count", "harmful",
        "the phase never ends", (substitute("expect", "2048", "2052"),), ("full",),
    ),
    Mutation(
        "half of the values sent", "exchange", "transaction count", "harmful",
        "half of the bytes never come",
        (substitute("send", r"v4\.f32 (\[%r\d+\]), \{(%r\d+), (%r\d+), .*?\}", r"v2.f32 \1, {\2, \3}"),), ("full",),
    ),
    Mutation(
        "ordinary store in place of the asynchronous one", "exchange", "transaction count", "harmful",
        "it reports to no mbarrier", (substitute("send", SENT, r"st.shared::cluster.v4.f32 [\2], \3;"),), ("full",),
    ),
    Mutation(
        "reported to the barrier of the other place", "exchange", "wrong barrier", "harmful",
        "whoever waits there is told of another row",
        (substitute("send", SENT, sent(barrier="bar", before=r"xor.b32 bar, \4, 8;")),), ("full", "inbox"),
    ),
    Mutation(
        "reported to a barrier of one's own", "exchange", "wrong barrier", "harmful",
        "target and mbarrier must be in one CTA",
        (substitute("send", SENT, sent(barrier="bar", before=rf"{OWN} bar, \4, rank;")),), ("full",),
    ),
    # ---- values and places
    Mutation(
        "sent to oneself", "exchange", "wrong coordinate", "harmful",
        "each CTA adds its own row to itself",
        (substitute("send", SENT, sent("to", barrier="bar", before=rf"{OWN} to, \2, rank; {OWN} bar, \4, rank;")),),
        ("global out",),
    ),
    Mutation(
        "two values change places", "exchange", "wrong fragment", "harmful", "other columns",
        (substitute("send", r"\{(%r\d+), (%r\d+),", r"{\2, \1,"),), ("global out",),
    ),
    Mutation(
        "sent one thread on", "exchange", "wrong offset", "harmful",
        "the first four columns are never written", (substitute("send", SENT, sent(r"\2+16")),),
        ("inbox", "global out", "beyond"),
    ),
    Mutation(
        "sent to an address that is no multiple of 16", "exchange", "misaligned", "harmful",
        "four values are stored at once", (substitute("send", SENT, sent(r"\2+4")),), ("inbox",),
    ),
    # ---- the same in other words
    Mutation(
        "values sent as bits", "exchange", "same in other words", "benign",
        "no store looks at what it stores", (substitute("send", r"v4\.f32", "v4.b32"),),
    ),
    Mutation(
        "weak left out", "exchange", "same in other words", "benign",
        "it is the default", (substitute("send", r"\.weak", ""),),
    ),
    Mutation(
        "fence of the async proxy before it", "exchange", "more fences", "benign",
        "registers need none", (insert("send", r"st\.async", "fence.proxy.async.shared::cluster;"),),
    ),
]  # fmt: skip
