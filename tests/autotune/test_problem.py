"""Shapes as people write them, and what is refused."""

import json

import pytest

from autotune import Problem, load_shapes


def write(tmp_path, content):
    path = tmp_path / "shapes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_shape_without_op_is_both_operations_and_lengths_and_dims_follow_each_other(tmp_path):
    problems = load_shapes(write(tmp_path, [{"head_dim": 64, "seqlen_q": 512}, {"op": "bwd"}]))
    assert [p.op for p in problems] == ["fwd", "bwd", "bwd"]
    assert (problems[0].head_dim_v, problems[0].seqlen_k) == (64, 512)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ([], "must hold a JSON list with at least one shape"),
        ({}, "must hold a JSON list"),
        ([{"head": 1}], "shape 0 must be an object with fields of batch, dtype"),
        ([{}, {"head_dim": 2048}], "shape 1: head_dim and head_dim_v must be multiples of 8 up to 256"),
        ([{"heads_q": 5, "heads_k": 2}], "heads_q must be a multiple of heads_k, got 5 and 2"),
        ([{"seqlen_q": "8k"}], "Problem.seqlen_q must be an int, got '8k'"),
        ([{"batch": 0}], "Problem.batch must be at least 1, got 0"),
        ([{"op": "forward"}], "Problem.op must be one of fwd, bwd, got 'forward'"),
        ([{"mask": "cuasal"}], "unknown mask 'cuasal'"),
    ],
)
def test_a_bad_shapes_file_is_refused_naming_the_shape(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_shapes(write(tmp_path, content))


def test_keys_hold_buckets_not_lengths():
    keys = [Problem(seqlen_q=n, seqlen_k=n).key("gpu", 132) for n in (8192, 8000, 4096)]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]
    assert (keys[0].density, keys[0].layers, keys[0].gqa, keys[0].seqlen_q) == (1, 1, 4, 13)
