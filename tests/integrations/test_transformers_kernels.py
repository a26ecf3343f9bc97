"""Models in bf16 on the kernels: as near to fp64 as eager attention in bf16 is, within a factor of two."""

import copy

import pytest
import torch
from oracle import allowed_error
from tiny_models import CONFIGS, image_inputs, inputs, model

import cute_attn
from cute_attn.integrations.transformers import register

pytestmark = pytest.mark.slow
ONE = {"num_hidden_layers": 1, "head_dim": 64}


def small(name, attention, dtype):
    changes = ONE
    if name == "gemma3":
        text = copy.deepcopy(CONFIGS[name].text_config)
        text.num_hidden_layers, text.layer_types, text.head_dim = 1, ["sliding_attention"], 64
        changes = {"text_config": text}
    made = model(name, attention, **changes).to(dtype)
    if name == "gpt_oss":
        made.set_experts_implementation("eager")  # the other one has no fp64
    return made


@pytest.fixture(autouse=True)
def _registered():
    with register():
        yield


def computed(name, attention, dtype, given, counts, weights):
    """Logits, and gradients by parameter, in fp64."""
    made = small(name, attention, dtype)
    if "pixel_values" in given:
        given = {**given, "pixel_values": given["pixel_values"].to(dtype)}
    logits = made(**given).logits[counts].double()
    (logits * weights).sum(-1).mean().backward()
    gradients = {name: x.grad.double() for name, x in made.named_parameters() if "self_attn" in name}
    return {"logits": logits.detach(), **gradients}


# Rows of padding are NaN in eager attention in fp64 but for gpt_oss: -1e308 is rounded to fp32 there.
@pytest.mark.parametrize(
    ("name", "layout"),
    [("llama", "packed"), ("mistral", "packed"), ("gpt_oss", "left"), ("gemma2", "packed"), ("gemma3", "images")],
    ids=["packed", "window", "sinks", "softcap", "images"],
)
def test_a_layer_trains_on_kernels(backend, name, layout):
    given, counts = image_inputs() if layout == "images" else inputs(layout)
    if layout == "images":
        counts[:] = True
        given = {**given, "attention_mask": counts.long()}
    weights = torch.randn(int(counts.sum()), 64, dtype=torch.float64)
    exact = computed(name, "eager", torch.float64, given, counts, weights)
    plain = computed(name, "eager", torch.bfloat16, given, counts, weights)
    with cute_attn.backend(backend):
        found = computed(name, "cute_attn", torch.bfloat16, given, counts, weights)
    for part, expected in exact.items():
        allowed = allowed_error(expected, plain[part])
        assert (found[part] - expected).abs().max().item() <= allowed, part


def test_a_token_is_decoded_on_kernels(backend):
    given, counts = inputs("left")
    longer = {**given, "attention_mask": torch.nn.functional.pad(counts.long(), (0, 1), value=1)}
    longer["input_ids"] = torch.nn.functional.pad(given["input_ids"], (0, 1), value=7)
    logits = {}
    for name, attention, dtype in (
        ("exact", "eager", torch.float64), ("plain", "eager", torch.bfloat16), ("found", "cute_attn", torch.bfloat16)
    ):  # fmt: skip
        made = small("gpt_oss", attention, dtype).eval()
        with torch.no_grad():
            cache = made(**given).cache
            token = {"input_ids": longer["input_ids"][:, -1:], "attention_mask": longer["attention_mask"]}
            with cute_attn.backend(backend if attention == "cute_attn" else "reference"):
                logits[name] = made(**token, cache=cache).logits.double()
    error = {name: (logits[name] - logits["exact"]).abs().max().item() for name in ("plain", "found")}
    assert error["found"] <= 2 * error["plain"]
