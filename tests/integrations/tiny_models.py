"""Models of transformers with random weights, as small as they can be, twice: with its own attention and with ours."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    Gemma2Config,
    Gemma3Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
)

VOCABULARY, IMAGE = 64, 60
TOKENS = 12
WINDOW = 4  # below the lengths of all tests
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # large enough that attention matters
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}  # all of them: no choice turns on a rounding
ALTERNATING = ["sliding_attention", "full_attention"]

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma2": Gemma2Config(
        **SIZES, sliding_window=WINDOW, layer_types=ALTERNATING, attn_logit_softcapping=2.0, query_pre_attn_scalar=4
    ),
    "gpt_oss": GptOssConfig(
        **SIZES,
        **EXPERTS,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "llama4": Llama4TextConfig(
        **SIZES, **EXPERTS, intermediate_size_mlp=16, attention_chunk_size=WINDOW, no_rope_layers=[1, 0]
    ),
    "gemma3": Gemma3Config(
        text_config={**SIZES, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        initializer_range=0.4,
    ),
    "bert": BertConfig(**SIZES),
    "bart": BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        init_std=0.4,
        pad_token_id=0,
        bos_token_id=1,
        decoder_start_token_id=1,
        eos_token_id=63,
        forced_eos_token_id=None,
    ),
}
KINDS = {"gemma3": AutoModelForImageTextToText, "bert": AutoModelForMaskedLM, "bart": AutoModelForSeq2SeqLM}
TEXT = [name for name in CONFIGS if name not in KINDS]


def model(name, attention, **changes):
    """One model; of equal names and numbers drawn, models are equal but for their attention."""
    config = copy.deepcopy(CONFIGS[name])  # a model writes its attention into its config
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(5)
    made = KINDS.get(name, AutoModelForCausalLM).from_config(config, attn_implementation=attention).train()
    for parameter_name, x in made.named_parameters():
        if parameter_name.endswith(("sinks", "mm_input_projection_weight")):  # zeros by themselves
            torch.nn.init.normal_(x)
    assert made.config._attn_implementation == attention
    return made


def pair(name, **changes):
    """The oracle and ours."""
    return model(name, "eager", **changes), model(name, "cute_attn", **changes)


def tokens(batch=2, length=TOKENS):
    return torch.randint(2, IMAGE, (batch, length))


def inputs(layout):
    """What a model of text is called with, and which positions count: bool (batch, tokens)."""
    given, counts = {"input_ids": tokens()}, torch.ones(2, TOKENS, dtype=torch.bool)
    if layout == "packed":
        documents = [torch.cat([torch.arange(n) for n in lengths]) for lengths in ((5, 4, 3), (1, 11))]
        return {**given, "position_ids": torch.stack(documents), "use_cache": False}, counts
    if layout == "left":
        counts[0, :5], counts[1, :1] = False, False
    if layout == "right":
        counts[0, 7:] = False
    return given if layout == "plain" else {**given, "attention_mask": counts.long()}, counts


def image_inputs():
    """Two images in one text, one in another that is padded on the left."""
    ids = tokens(2, 16)
    ids[0, 2:6] = ids[0, 9:13] = ids[1, 8:12] = IMAGE
    counts = torch.ones(2, 16, dtype=torch.bool)
    counts[1, :3] = False
    given = {"input_ids": ids, "pixel_values": torch.randn(3, 3, 8, 8), "attention_mask": counts.long()}
    return {**given, "token_type_ids": (ids == IMAGE).long()}, counts
