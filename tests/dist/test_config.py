"""Configuration: defaults, checks, and equality that tells everything apart."""

import numpy as np
import pytest

from cute_attn.dist import (
    AttnOverlapMode,
    AutoDispatchAlg,
    ContiguousDispatchAlg,
    CostModel,
    DispatchConfig,
    DistAttnConfig,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    OverlapAlgType,
    OverlapConfig,
    ZigzagDispatchAlg,
)


def test_the_example_of_the_interface_is_accepted():
    config = DistAttnConfig(
        dispatch_config=DispatchConfig(alg=MinHeapDispatchAlg()),
        overlap_config=OverlapConfig(
            enable=True,
            mode=AttnOverlapMode.STATIC,
            degree=2,
            min_chunk_size=512,
            max_num_chunks=64,
            alg=OverlapAlgType.UNIFORM,
        ),
    )
    assert config.mover == "auto"
    assert DistAttnConfig().dispatch_config.alg == AutoDispatchAlg()


def test_configurations_that_differ_are_unequal_and_equal_ones_hash_alike():
    algs = [
        MinHeapDispatchAlg(),
        ContiguousDispatchAlg(),
        ZigzagDispatchAlg(),
        AutoDispatchAlg(),
        LocalityDispatchAlg(),
        LocalityDispatchAlg(0.1),
    ]
    configs = [DistAttnConfig(DispatchConfig(alg)) for alg in algs]
    configs += [DistAttnConfig(DispatchConfig(chunk_size=512))]
    configs += [DistAttnConfig(mover=m) for m in ("ring", "group_cast")] + [DistAttnConfig(check_ranks=False)]
    configs += [
        DistAttnConfig(overlap_config=x)
        for x in (OverlapConfig(enable=False), OverlapConfig(degree=2), OverlapConfig(alg=OverlapAlgType.GREEDY))
    ]
    assert len(set(configs)) == len(configs)
    assert DistAttnConfig() == DistAttnConfig()
    assert hash(DistAttnConfig()) == hash(DistAttnConfig())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: DistAttnConfig(mover="rings"),
            ValueError,
            "mover must be one of auto, group_cast, node_cast, query_cast, ring, .* got 'rings'",
        ),
        (lambda: DistAttnConfig(mover=np.array(["ring"])), TypeError, "mover must be a str, got array"),
        (lambda: DistAttnConfig(check_ranks=1), TypeError, "check_ranks must be a bool, got 1"),
        (lambda: CostModel(flops="fast"), TypeError, "flops must be a number, got 'fast' of type str"),
        (lambda: CostModel(overlap=None), TypeError, "overlap must be a number, got None"),
        (lambda: CostModel(latency=10**400), ValueError, "latency must be finite"),
        (lambda: OverlapConfig(sm_margin=2**63), ValueError, "sm_margin must be below 2147483648"),
        (lambda: DistAttnConfig(DispatchConfig), TypeError, "dispatch_config must be of type DispatchConfig"),
        (lambda: DistAttnConfig(overlap_config=True), TypeError, "overlap_config must be of type OverlapConfig"),
        (lambda: DispatchConfig(MinHeapDispatchAlg), TypeError, "alg must be an instance of MinHeapDispatchAlg"),
        (lambda: DispatchConfig(chunk_size=0), ValueError, "DispatchConfig: chunk_size must be >= 1, got 0"),
        (lambda: DispatchConfig(chunk_size=512.0), TypeError, "DispatchConfig: chunk_size must be an int, got 512.0"),
        (lambda: LocalityDispatchAlg(-0.1), ValueError, "epsilon must be >= 0, got -0.1"),
        (lambda: LocalityDispatchAlg(float("nan")), ValueError, "epsilon must be finite, got nan"),
        (lambda: LocalityDispatchAlg("0.1"), TypeError, "epsilon must be a number, got '0.1' of type str"),
        (lambda: OverlapConfig(enable=1), TypeError, "enable must be a bool, got 1"),
        (lambda: OverlapConfig(mode="static"), TypeError, "mode must be one of AttnOverlapMode.STATIC"),
        (lambda: OverlapConfig(alg="uniform"), TypeError, "alg must be one of OverlapAlgType.UNIFORM"),
        (lambda: OverlapConfig(degree=0), ValueError, "degree must be >= 1, got 0"),
        (lambda: OverlapConfig(degree=True), TypeError, "degree must be an int, got True"),
        (lambda: OverlapConfig(degree=None), TypeError, "degree must be an int, got None"),
        (lambda: OverlapConfig(mode=AttnOverlapMode.DYNAMIC), ValueError, "degree must be None in DYNAMIC mode, got 1"),
        (lambda: OverlapConfig(min_chunk_size=0), ValueError, "min_chunk_size must be >= 1, got 0"),
        (lambda: OverlapConfig(max_num_chunks=0), ValueError, "max_num_chunks must be >= 1, got 0"),
        (lambda: OverlapConfig(sm_margin=-1), ValueError, "sm_margin must be >= 0, got -1"),
        (lambda: CostModel(heads_q=6, heads_k=4), ValueError, "heads_q = 6 must be divisible by heads_k = 4"),
        (lambda: CostModel(bandwidth=0), ValueError, "bandwidth must be > 0, got 0"),
        (lambda: CostModel(latency=-1), ValueError, "latency must be >= 0, got -1"),
        (lambda: CostModel(overlap=2), ValueError, r"overlap must be in \[0, 1\], got 2"),
        (lambda: CostModel(ranks_per_node=0), ValueError, "ranks_per_node must be >= 1, got 0"),
        (lambda: CostModel(node_bandwidth=0), ValueError, "node_bandwidth must be > 0, got 0"),
        (lambda: DistAttnConfig(cost=None), TypeError, "cost must be of type CostModel, got None"),
        (lambda: DistAttnConfig(mover="node_cast"), ValueError, "needs nodes of several ranks, got ranks_per_node = 1"),
        (lambda: CostModel(head_dim=0), ValueError, "head_dim must be >= 1, got 0"),
    ],
)
def test_bad_configuration_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
