"""Rubbish of every kind at every parameter of the public functions: TypeError or ValueError that names the parameter,
and nothing taken that is not meant to be."""

import inspect
import re

import numpy as np
import pytest
import torch

import cute_attn
from cute_attn import AttnMaskType, AttnRange, AttnRanges, IntervalMask, TileSchedule, mask
from cute_attn.jit import record
from cute_attn.mask import draw


def nested():
    return torch.nested.nested_tensor([torch.zeros(2, 4)], layout=torch.jagged)


class Thing:
    def __repr__(self):
        return "a thing"


RUBBISH = {
    "None": None,
    "True": True,
    "text": "text",
    "no text": "",
    "bytes": b"1",
    "empty list": [],
    "list of texts": ["a", "b"],
    "ragged list": [[1, 2], [3]],
    "list of None": [None],
    "list of floats": [0.5, 1.5],
    "list past int64": [0, 1 << 70],
    "empty tuple": (),
    "empty dict": {},
    "dict": {0: 1, 2: 3},
    "set": {0, 1},
    "range": range(-1, -4, -1),
    "iterator": iter(()),
    "-1": -1,
    "2**31": 1 << 31,
    "-2**31 - 1": -(1 << 31) - 1,
    "2**63": 1 << 63,
    "10**30": 10**30,
    "-2**64": -(1 << 64),
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "1e300": 1e300,
    "complex": 1j,
    "object": Thing(),
    "class": int,
    "function": lambda *args: True,
    "slice": slice(None),
    "dtype": torch.int32,
    "numpy -1": np.int64(-1),
    "numpy uint64": np.uint64(2**64 - 1),
    "numpy float": np.float32(1.5),
    "numpy bool": np.bool_(True),
    "numpy text": np.str_("text"),
    "numpy 0-d": np.array(1.5),
    "numpy empty": np.array([]),
    "numpy floats": np.array([[0.5, 1.5]]),
    "numpy bools": np.array([True, False]),
    "numpy texts": np.array(["sh", "ssh"]),
    "numpy objects": np.array([None, {}]),
    "numpy 3-d": np.zeros((2, 2, 2), dtype=np.int64),
    "numpy 0-d int": np.array(1),
    "int": torch.tensor(1),
    "float": torch.tensor(1.5),
    "bool": torch.tensor(True),
    "vector": torch.zeros(3),
    "no elements": torch.zeros(0, 2),
    "bools": torch.ones(6, 8, dtype=torch.bool),
    "int8": torch.tensor([[3, -3]], dtype=torch.int8),
    "uint64": torch.tensor([2**63 + 5, 1], dtype=torch.uint64),
    "5-d": torch.zeros(1, 1, 1, 1, 1),
    "complex tensor": torch.zeros(6, 4, 16, dtype=torch.complex64),
    "float8": torch.zeros(6, 4, 16, dtype=torch.float8_e4m3fn),
    "sparse": torch.eye(3).to_sparse(),
    "sparse integers": torch.eye(3, dtype=torch.int64).to_sparse(),
    "nested": nested(),
    "nested of strided layout": torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)]),
    "meta floats": torch.zeros(6, 4, 16, device="meta"),
    "meta pairs": torch.zeros(1, 2, dtype=torch.int64, device="meta"),
    "meta integers": torch.zeros(3, dtype=torch.int64, device="meta"),
    "meta number": torch.tensor(1, device="meta"),
    "other mask": mask.full(3),
    "AttnRange": AttnRange(0, 1),
}  # fmt: skip

INTEGRAL = {"-1", "numpy -1"}
NUMBERS = {"2**31", "2**63", "10**30", "1.5", "numpy uint64", "numpy float"}
EMPTY = {"empty list", "empty tuple", "numpy empty"}
# What of the rubbish a parameter takes, rightly, beside None where that is its default; what is said of
# function.parameter stands before what is said of every parameter of this name.
TAKEN = {
    "softmax_scale": NUMBERS | INTEGRAL | {"-2**31 - 1", "-2**64"},
    "softcap": NUMBERS,
    "causal": {"True"},
    "deterministic": {"True"},
    "pack_gqa": {"True"},
    "return_attn_probs": {"True"},
    "return_max_logits": {"True"},
    "disable_fwd_atomic_reduction": {"True"},
    "auto_range_merge": {"True"},
    "causal_outside": {"True"},
    "backward": {"True"},
    "max_seqlen": {"None", "meta number"},
    "max_seqlen_q": {"None", "meta number"},
    "max_seqlen_k": {"None", "meta number"},
    "window_size": {"None", "list past int64", "uint64"},
    "sliding_window.window_size": set(),
    "offset": INTEGRAL,
    "left": INTEGRAL,
    "right": INTEGRAL,
    "prefix_lm.prefix_length": {"2**31"},
    "lengths": EMPTY,
    "positions": EMPTY,
    "remap.positions": set(),
    "from_cu_seqlens.cu_seqlens": EMPTY,
    "title": {"text", "no text", "numpy text"},
    "draw_png.path": {"text", "numpy text"},
    "save.path": {"text", "numpy text"},
    "rows": {"slice"},
    "coverage.rows": set(),
    "pair": {"AttnRange"},
    "item": {"AttnRange"},
    "items": {"empty list", "empty tuple", "empty dict", "iterator"},
    "mask": {"other mask"},
    "other": {"other mask"},
    "ranges": {"empty list", "empty tuple", "empty dict", "iterator"},
    "attn_type_map": {"None"},
    "scale": NUMBERS | INTEGRAL | {"-2**31 - 1", "-2**64"},
    "enable_gqa": {"True"},
    "return_lse": {"True"},
    "score_mod": {"function"},
    "kernel_options": {"empty dict"},
}  # fmt: skip
# What a message may say instead of the name.
ALIASES = {
    "cu_seqlens": "cu_seqlens_q",
    "backend.name": "backend",
    "from_spec.spec": "mask",
    "load_bundle.path": "bundle",
    "pair": "AttnRange",
    "item": "AttnRange",
    "value": "AttnMaskType",
}

tokens = torch.zeros


def arguments_of_flex():
    return {
        "q": tokens(6, 4, 16),
        "k": tokens(8, 2, 16),
        "v": tokens(8, 2, 16),
        "q_ranges": [[0, 6]],
        "k_ranges": [[0, 8]],
        "attn_type_map": ["causal"],
    }


def arguments_with_sink(name):
    """Of one of the nine functions: 6 queries of 4 heads and 8 keys of 2, or packed 6 and 6 of 4."""
    ends = {"cu_seqlens_q": torch.tensor([0, 2, 6]), "cu_seqlens_k": torch.tensor([0, 5, 8])}
    ends |= {"max_seqlen_q": 4, "max_seqlen_k": 5}
    q, k = tokens(6, 4, 16), tokens(8, 2, 16)
    if "varlen" not in name:
        q, k, ends = q[None], k[None], {}
    if "qkvpacked" in name:
        packed = {"fa3": tokens(1, 6, 12, 16), "fa2": tokens(1, 6, 3, 4, 16)}[name[:3]]
        ends = {"cu_seqlens": torch.tensor([0, 2, 6]), "max_seqlen": 4} if ends else {}
        return {"qkv": packed[0] if ends else packed, **ends}
    if "kvpacked" in name:
        return {"q": q, "kv": torch.stack([k, k], -3), **ends}
    return {"q": q, "k": k, "v": k, **ends}


BUILDERS = {
    "full": {},
    "causal": {},
    "sliding_window": {"left": 1, "right": 0},
    "chunked_causal": {"chunk_size": 3},
    "block_causal": {"block_size": 3},
    "prefix_lm": {"prefix_length": 2},
    "shared_prefix": {"prefix_length": 2, "lengths": [2, 1]},
    "block_diffusion": {"block_size": 2},
    "global_tokens": {"positions": [0], "left": 1, "right": 0},
    "documents": {"cu_seqlens": [0, 2, 6]},
    "causal_documents": {"segment_ids": [0, 0, 0, 1, 1, 1]},
    "bidirectional_runs": {"bidirectional_mask": [0, 1, 1, 0, 0, 0]},
}
six = mask.causal(6, 8)

CALLS = {
    "flex_flash_attn_func": (cute_attn.flex_flash_attn_func, arguments_of_flex()),
    "flex_attention": (
        cute_attn.flex_attention,
        {"query": tokens(1, 4, 6, 16), "key": tokens(1, 4, 8, 16), "value": tokens(1, 4, 8, 16)},
    ),
    **{
        name: (getattr(cute_attn, name), arguments_with_sink(name))
        for name in cute_attn.__all__
        if name.endswith("_with_sink")
    },
    **{name: (getattr(mask, name), {"seqlen_q": 6, **arguments}) for name, arguments in BUILDERS.items()},
    "from_spec": (mask.from_spec, {"spec": "causal", "seqlen_q": 6}),
    "from_slices": (IntervalMask.from_slices, {"q_ranges": [[0, 6]], "k_ranges": [[0, 8]], "attn_type_map": [1]}),
    "from_intervals": (
        IntervalMask.from_intervals,
        {"lo": torch.zeros(6, dtype=torch.int32), "hi": torch.ones(6, dtype=torch.int32), "seqlen_k": 8},
    ),
    "IntervalMask": (IntervalMask, {"lo": six.lo, "hi": six.hi, "seqlen_k": 8}),
    "equals": (six.equals, {"other": six}),
    "schedule": (six.schedule, {"tile": (128, 128)}),
    "permute_rows": (six.permute_rows, {"order": torch.arange(6)}),
    "remap": (six.remap, {"positions": torch.arange(8)}),
    "to": (six.to, {"device": "cpu"}),
    "prepare": (six.prepare, {"q": tokens(6, 4, 16), "k": tokens(8, 2, 16), "v": tokens(8, 2, 16)}),
    "__getitem__": (six.__getitem__, {"rows": slice(0, 2)}),
    "TileSchedule.from_mask": (TileSchedule.from_mask, {"mask": six}),
    "AttnRange": (AttnRange, {"start": 0, "end": 4}),
    "AttnRanges": (AttnRanges, {"ranges": [[0, 4]]}),
    "from_range": (AttnRange.from_range, {"pair": [0, 4]}),
    "append": (AttnRanges().append, {"item": [0, 4]}),
    "extend": (AttnRanges().extend, {"items": [[0, 4]]}),
    "from_int_type": (AttnMaskType.from_int_type, {"value": 1}),
    "parse": (AttnMaskType.parse, {"value": "causal"}),
    "from_cu_seqlens": (AttnRanges.from_cu_seqlens, {"cu_seqlens": [0, 4]}),
    "to_tensor": (AttnRanges([[0, 4]]).to_tensor, {}),
    "draw_text": (draw.draw_text, {"mask": six}),
    "draw_png": (draw.draw_png, {"mask": six, "path": "mask.png"}),
    "coverage": (draw.coverage, {"mask": six, "rows": 2, "columns": 2}),
    "backend": (cute_attn.backend, {"name": "sim"}),
    "save": (record.Recorder().save, {"path": "specs.json"}),
    "load_bundle": (cute_attn.load_bundle, {"path": "nowhere"}),
}


EVERY = [
    (call, parameter.name)
    for call, (function, _) in CALLS.items()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is not parameter.VAR_KEYWORD
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def outcome(call, name, value):
    """None if the value is refused as it should be, else what happened."""
    function, arguments = CALLS[call]
    try:
        function(**{**arguments, name: value})
    except (TypeError, ValueError) as error:
        alias = ALIASES.get(f"{call}.{name}", ALIASES.get(name, name))
        if re.search(rf"\b({name}|{alias})\b", str(error)):
            return None
        return f"a {type(error).__name__} that does not name it: {error}"
    except OSError as error:
        return None if name == "path" else f"OSError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


@pytest.mark.parametrize("option", ["mode", "seed", "softmax"])
def test_rubbish_as_an_option_of_a_backend_is_refused_by_name(option):
    for kind, value in RUBBISH.items():
        if option == "seed" and isinstance(value, (int, np.integer)) and value >= 0 and value is not True:
            cute_attn.backend("sim", seed=value)
            continue
        with pytest.raises((TypeError, ValueError), match=rf"^{option} must be"):
            pytest.fail(f"{kind} was taken: {cute_attn.backend('sim', **{option: value})}")


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(("call", "name"), EVERY, ids=[f"{call}-{name}" for call, name in EVERY])
def test_rubbish_is_refused_by_name(call, name):
    taken = TAKEN.get(f"{call}.{name}", TAKEN.get(name, set()))
    if inspect.signature(CALLS[call][0]).parameters[name].default is None and name not in CALLS[call][1]:
        taken = taken | {"None"}
    wrong = {}
    for kind, value in RUBBISH.items():
        happened = outcome(call, name, value)
        if happened != ("taken" if kind in taken else None):
            wrong[kind] = happened or "refused"
    assert not wrong
