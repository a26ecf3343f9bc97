"""Masks by name, as every command takes them."""

import inspect

import pytest

from cute_attn import mask as masks

ONE_OF_EACH = {
    "full": masks.full(16),
    "causal:align=top_left,offset=-2": masks.causal(16, align="top_left", offset=-2),
    "sliding_window:left=4,right=-1": masks.sliding_window(16, left=4, right=-1),
    "sliding_window:window_size=4": masks.sliding_window(16, window_size=4),
    "documents:cu_seqlens=0/5/16": masks.documents(16, cu_seqlens=[0, 5, 16]),
    "causal_documents:cu_seqlens=0/5/16,cu_seqlens_k=0/9/16": masks.causal_documents(
        16, cu_seqlens=[0, 5, 16], cu_seqlens_k=[0, 9, 16]
    ),
    "prefix_lm:prefix_length=6": masks.prefix_lm(16, prefix_length=6),
    "prefix_lm:prefix_length=6/8": masks.prefix_lm(16, prefix_length=[6, 8]),
    "shared_prefix:prefix_length=4,lengths=12": masks.shared_prefix(16, prefix_length=4, lengths=[12]),
    "shared_prefix:prefix_length=4,lengths=6/6": masks.shared_prefix(16, prefix_length=4, lengths=[6, 6]),
    "chunked_causal:chunk_size=5": masks.chunked_causal(16, chunk_size=5),
    "block_causal:block_size=5": masks.block_causal(16, block_size=5),
    "block_diffusion:block_size=4": masks.block_diffusion(16, block_size=4),
    "bidirectional_runs:runs=2-5/9-12": masks.bidirectional_runs(16, runs=[[2, 5], [9, 12]]),
    "bidirectional_runs:runs=2-5,causal_outside=false": masks.bidirectional_runs(
        16, runs=[[2, 5]], causal_outside=False
    ),
    "global_tokens:positions=0,left=2,right=2": masks.global_tokens(16, positions=[0], left=2, right=2),
    " causal : offset = 1 ,": masks.causal(16, offset=1),
}


@pytest.mark.parametrize("spec", ONE_OF_EACH)
def test_a_name_and_its_keys_build_the_mask(spec):
    assert masks.from_spec(spec, 16).equals(ONE_OF_EACH[spec])


def test_every_builder_has_a_name():
    assert {spec.partition(":")[0].strip() for spec in ONE_OF_EACH} == set(masks.BUILDERS)
    for name, builder in masks.BUILDERS.items():
        assert getattr(masks, name) is builder
        assert list(inspect.signature(builder).parameters)[:2] == ["seqlen_q", "seqlen_k"]
        assert inspect.signature(builder).parameters["device"].default is None
        assert builder.__doc__


def test_lengths_of_queries_and_keys_may_differ():
    assert masks.from_spec("causal", 4, 9).equals(masks.causal(4, 9))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("diagonal", "unknown mask 'diagonal'; there are: bidirectional_runs, block_causal,"),
        ("", "unknown mask ''; there are:"),
        ("causal:shift=3", "mask causal has no argument 'shift'; there are: align, offset"),
        ("full:x=1", "mask full has no argument 'x'; there are: none"),
        ("causal:offset", "mask causal: expected key=value, got 'offset'"),
        ("causal:offset=1,offset=2", "mask causal: offset is given twice"),
        ("causal:offset=1.5", "mask causal: offset must be a number, or a list such as 0/137/512, got '1.5'"),
        ("documents:cu_seqlens=0-5", "cu_seqlens must be a number, or a list such as 0/137/512, got '0-5'"),
        ("bidirectional_runs:runs=5", "runs must be start-end ranges such as 16-48/64-80, got '5'"),
        ("block_causal", "mask block_causal needs block_size; for example --mask block_causal:block_size="),
        ("documents", "exactly one of cu_seqlens and segment_ids"),
        ("chunked_causal:chunk_size=0", "chunk_size must be positive"),
        ("block_causal:block_size=abc", "mask block_causal: block_size must be an int, got 'abc'"),
        ("sliding_window:left=1/2,right=0", r"mask sliding_window: left must be an int, got \[1, 2\]"),
        ("causal:offset=true", "mask causal: offset must be an int, got True"),
        ("causal:offset=99999999999999999999", "offset must be below 2.31"),
        ("bidirectional_runs:runs=0-2,causal_outside=no", "causal_outside must be True or False, got 'no'"),
        ("causal:device=cuda", "mask causal has no argument 'device'"),
    ],
)
def test_what_is_wrong_is_said_with_what_exists(spec, words):
    with pytest.raises(ValueError, match=words):
        masks.from_spec(spec, 16)
