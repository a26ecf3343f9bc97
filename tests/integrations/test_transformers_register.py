"""Nothing is switched on but by `register()`, whose handle undoes it."""

import subprocess
import sys

import pytest
import torch
from tiny_models import inputs, model
from transformers import AttentionInterface, AttentionMaskInterface

from cute_attn.integrations.transformers import register
from cute_attn.integrations.transformers.registration import NAME

MAPPINGS = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping


def is_known():
    known = [NAME in mapping for mapping in MAPPINGS]
    assert len(set(known)) == 1
    return known[0]


def test_importing_registers_nothing():
    assert not is_known()


def test_a_handle_removes_what_was_registered():
    handle = register()
    assert is_known()
    handle.remove()
    assert not is_known()
    handle.remove()
    with pytest.raises(ValueError, match="cute_attn"):
        model("llama", NAME)


def test_a_block_registers_for_its_length():
    with register():
        assert is_known()
    assert not is_known()


def test_the_name_stays_while_somebody_wants_it():
    with register():
        with register():
            assert is_known()
        assert is_known()
    assert not is_known()


def test_a_name_that_is_taken_is_left_alone(monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, print)
    with pytest.raises(RuntimeError, match="has another attention implementation"):
        register()
    assert NAME not in AttentionMaskInterface._global_mapping


def test_a_model_whose_implementation_is_gone_says_so():
    with register():
        mine = model("llama", NAME)
    with pytest.raises(KeyError, match="cute_attn"):
        mine(**inputs("plain")[0])


def test_a_model_may_change_to_it_and_back():
    theirs = model("llama", "eager")
    given, _ = inputs("left")
    with register():
        before = theirs(**given).logits
        theirs.set_attn_implementation(NAME)
        assert not torch.equal(theirs(**given).logits, before)  # padding tokens attend nothing here
        theirs.set_attn_implementation("eager")
        assert torch.equal(theirs(**given).logits, before)


PROGRAM = """
import sys, types
import cute_attn, cute_attn.integrations
print([name for name in sys.modules if "transformers" in name])
for there in (None, types.ModuleType("transformers")):
    sys.modules["transformers"] = there
    try:
        import cute_attn.integrations.transformers
    except ImportError as error:
        print(error)
"""


@pytest.mark.slow
def test_the_library_imports_none_of_it_and_one_error_says_what_is_missing_or_too_old():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    imported, *errors = result.stdout.splitlines()
    assert imported == "[]"
    assert len(errors) == 2
    for error in errors:
        assert error.startswith("cute_attn.integrations.transformers needs transformers 5.24 or newer")
        assert error.endswith('pip install "cute-attn[transformers]" brings it')
