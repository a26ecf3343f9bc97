"""Models of transformers compute with our attention what they compute with their own."""

import pytest
import torch
from tiny_models import TEXT, TOKENS, image_inputs, inputs, pair, tokens
from transformers import CompileConfig, GenerationConfig

from cute_attn import mask
from cute_attn.integrations.transformers import as_attention_mask, masks, register

LAYOUTS = ["plain", "left", "right", "packed"]


@pytest.fixture(autouse=True)
def _registered():
    with register():
        yield


def same(ours, theirs, what):
    scale = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() <= 1e-5 * scale, what


def loss(logits, weights):
    return (logits * weights).sum(-1).mean()


def check_logits_and_gradients(models, given, counts):
    outputs = [model(**given).logits[counts] for model in models]
    assert outputs[0].abs().max() > 0.1
    same(outputs[1], outputs[0], "logits")
    weights = torch.randn_like(outputs[0])
    for out in outputs:
        loss(out, weights).backward()
    for (name, theirs), ours in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None), name
        if theirs.grad is not None:
            without = "self_attn" not in name or name.endswith("k_proj.bias")  # which adds one number to all scores
            assert without or theirs.grad.abs().max() > 1e-3, name
            same(ours.grad, theirs.grad, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TEXT)
def test_logits_and_gradients_are_those_of_eager(name, layout):
    check_logits_and_gradients(pair(name), *inputs(layout))


def test_images_in_text_attend_all_of_themselves():
    check_logits_and_gradients(pair("gemma3"), *image_inputs())


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_encoders_see_both_ways_and_decoders_see_their_encoder(name):
    given, counts = inputs("right")
    if name == "bart":
        given["decoder_input_ids"], counts = tokens(length=5), torch.ones(2, 5, dtype=torch.bool)
    models = [model.eval() for model in pair(name)]  # their configs have dropout
    check_logits_and_gradients(models, given, counts)


@pytest.mark.parametrize("name", TEXT)
def test_several_tokens_go_on_from_a_cache(name):
    given, counts = inputs("left")
    mask = torch.nn.functional.pad(counts.long(), (0, 3), value=1)
    more, logits = tokens(length=3), []
    for model in pair(name):
        with torch.no_grad():
            cache = model.eval()(**given).cache
            logits.append(model(more, attention_mask=mask, cache=cache).logits)
    same(logits[1], logits[0], "logits")


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", TEXT)
def test_generating_gives_the_same_tokens(name, cache, padded):
    given, counts = inputs("left" if padded else "plain")
    options = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, cache_implementation=cache)
    given["attention_mask"] = counts.long()
    theirs, ours = (model.eval().generate(**given, generation_config=options) for model in pair(name))
    assert theirs.shape[1] == TOKENS + 8
    assert len(theirs[:, TOKENS:].unique()) > 1
    assert torch.equal(theirs, ours)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same():
    theirs, ours = pair("mistral", num_hidden_layers=1)
    check_logits_and_gradients((theirs, torch.compile(ours, backend="aot_eager")), *inputs("left"))


@pytest.mark.slow
def test_a_compiled_step_of_a_static_cache_generates_the_same_tokens():
    given, _ = inputs("left")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    compiled = CompileConfig(backend="aot_eager", fullgraph=True)
    compiled._compile_all_devices = True
    theirs, ours = (model.eval() for model in pair("llama", num_hidden_layers=1))
    expected = theirs.generate(**given, generation_config=GenerationConfig(**options))
    found = ours.generate(**given, generation_config=GenerationConfig(**options, compile_config=compiled))
    assert torch.equal(expected, found)


def test_a_mask_of_the_users_own_is_that_of_all_layers():
    answers = mask.shared_prefix(TOKENS, prefix_length=4, lengths=[3, 5])
    theirs, ours = pair("gpt_oss")
    ids, position_ids = tokens(), torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]])
    bias = torch.zeros(2, 1, TOKENS, TOKENS).masked_fill(~answers.to_dense(), torch.finfo(torch.float32).min)
    expected = theirs(ids, attention_mask=bias, position_ids=position_ids).logits
    found = ours(ids, attention_mask=as_attention_mask(answers), position_ids=position_ids).logits
    same(found, expected, "logits")


def test_a_mask_kept_from_inference_mode_serves_training():
    masks._kept.clear()
    _, ours = pair("mistral")
    given, _ = inputs("plain")
    with torch.inference_mode():
        ours(**given)
    assert masks._kept
    assert not any(kept.lo.is_inference() for kept in masks._kept.values())
    ours(**given).logits.sum().backward()


def test_asking_for_the_probabilities_is_refused():
    _, ours = pair("llama")
    with pytest.raises(ValueError, match=r"output_attentions is not supported.*eager"):
        ours(**inputs("plain")[0], output_attentions=True)


def test_dropout_is_refused_in_training_and_nowhere_else():
    _, ours = pair("llama", attention_dropout=0.1)
    with pytest.raises(ValueError, match=r"attention_dropout=0\.0"):
        ours(**inputs("plain")[0])
    ours.eval()(**inputs("plain")[0])


@pytest.mark.parametrize(("name", "beams"), [("gemma3", 1), ("bart", 1), ("bart", 3)])
def test_other_models_generate_the_same_tokens(name, beams):
    given, _ = image_inputs() if name == "gemma3" else inputs("right")
    options = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, num_beams=beams)
    options.decoder_start_token_id = 1
    theirs, ours = (model.eval().generate(**given, generation_config=options) for model in pair(name))
    assert torch.equal(theirs, ours)
