"""Profiles of candidates: made once, kept beside the cache, and true to the machine code."""

import json

import pytest
from fake_gpu import loop

from autotune import profile as module
from autotune.profile import Profile, compile_profile, read_profile, write_profile
from cute_attn.directories import cache_directory
from cute_attn.jit import cache
from cute_attn.jit.compile import Compiled
from cute_attn.jit.entry import Entry
from cute_attn.jit.fingerprint import key
from cute_attn.predict.kernel import Code
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm

SPEC = ForwardSpec(mask=MaskForm(True))
CODE = Code((loop(1024, 351),))
LOG = "0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads ptxas info: Used 168 registers"


@pytest.fixture
def compiles(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    seen = []

    def compile(spec):
        seen.append(spec)
        return Compiled(spec, None, "// ptx", b"", LOG)

    monkeypatch.setattr(module, "compile", compile)
    monkeypatch.setattr(module, "_code", lambda compiled: (CODE, ""))
    kept = {}
    monkeypatch.setattr(module, "link", lambda compiled: Entry(compiled.spec, b"", b"", {}))
    monkeypatch.setattr(module.cache, "commit", lambda entry: kept.setdefault(entry.spec, entry))
    monkeypatch.setattr(module.cache, "read", kept.get)
    return seen


def test_a_profile_is_made_once_and_kept_beside_the_cache(compiles):
    first = compile_profile(SPEC)
    assert first == Profile(168, 24, (), CODE)
    assert compile_profile(SPEC) == first
    assert compiles == [SPEC]
    assert list((cache_directory() / "profiles").iterdir())


def test_a_profile_whose_kernel_is_gone_is_made_again(compiles, monkeypatch):
    compile_profile(SPEC)
    monkeypatch.setattr(module.cache, "read", lambda spec: None)
    compile_profile(SPEC)
    assert compiles == [SPEC, SPEC]


def kept():
    return cache_directory() / "profiles" / f"{key(SPEC)}.json"


STEPS = [["products", 1024], ["run", 351, 0, 0, 0, 0], ["wait", 0]]
LOOP = {"steps": STEPS, "tensor_cycles": 1024, "shared_cycles": 0}
WHOLE = {"registers": 168, "spill_bytes": 24, "warnings": [], "loops": [LOOP], "unknown": ""}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", json.dumps(WHOLE)[:-9]]
    + [json.dumps({k: v for k, v in WHOLE.items() if k != name}) for name in WHOLE]
    + [json.dumps(WHOLE | broken) for broken in ({"registers": None}, {"loops": None}, {"loops": [{"slots": 1}]})]
    + [json.dumps(WHOLE | {"loops": [LOOP | {"tensor_cycles": 0}]}), json.dumps(WHOLE | {"warnings": [1]})]
    + [json.dumps(WHOLE | {"loops": [LOOP | {"steps": [["run", "many"]]}]}), json.dumps(WHOLE | {"loops": []})],
)
def test_a_profile_that_is_empty_cut_or_lacks_a_part_is_made_again(compiles, content):
    compile_profile(SPEC)
    assert json.loads(kept().read_text()) == WHOLE
    kept().write_text(content)
    assert compile_profile(SPEC).code == CODE
    assert compiles == [SPEC, SPEC]
    assert json.loads(kept().read_text()) == WHOLE


def test_a_profile_that_cannot_be_written_whole_leaves_the_one_before(tmp_path, monkeypatch):
    write_profile(tmp_path, "name", Profile(168, 0, (), CODE))

    def dies(content, file, **options):
        file.write("{")
        raise KeyboardInterrupt

    monkeypatch.setattr("autotune.files.json.dump", dies)
    with pytest.raises(KeyboardInterrupt):
        write_profile(tmp_path, "name", Profile(200, 0, (), CODE))
    assert read_profile(tmp_path, "name") == Profile(168, 0, (), CODE)


def test_loops_that_are_unknown_are_so_by_name_and_known_once_there_is_a_disassembler(compiles, monkeypatch):
    disassembler = []

    def found():
        if not disassembler:
            raise RuntimeError("inspecting machine code needs nvdisasm")
        return disassembler[0]

    monkeypatch.setattr(module.sass, "disassembler", found)
    monkeypatch.setattr(module, "_code", lambda compiled: (Code(), "no nvdisasm"))
    for _ in range(2):
        assert compile_profile(SPEC) == Profile(168, 24, unknown="no nvdisasm")
    assert compiles == [SPEC]
    disassembler.append("/usr/bin/nvdisasm")
    monkeypatch.setattr(module, "_code", lambda compiled: (CODE, ""))
    for _ in range(2):
        assert compile_profile(SPEC).code == CODE
    assert compiles == [SPEC, SPEC]


def test_without_a_disassembler_the_loops_of_a_kernel_are_none_and_the_reason_is_kept(monkeypatch):
    monkeypatch.setattr(module.sass.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.sass, "folders_of", lambda package: [])
    code, unknown = module._code(Compiled(SPEC, None, "// ptx", b"", LOG))
    assert code == Code()
    assert "needs nvdisasm" in unknown


@pytest.mark.slow
def test_a_real_kernel_has_loops_with_the_products_of_its_tile(tmp_path, monkeypatch):
    from shutil import which

    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    found = compile_profile(ForwardSpec(head_dim=64, head_dim_v=64, mask=MaskForm(True)))
    assert found.refusal == ""
    assert found.registers == 168
    assert cache.read(ForwardSpec(head_dim=64, head_dim_v=64, mask=MaskForm(True))) is not None
    if found.code.loops or which("nvdisasm"):
        tile = 64 * 128 * (64 + 64) // 2048  # cycles of one warpgroup's products for one tile of keys
        assert found.code.loops
        assert all(loop.tensor_cycles % tile == 0 and loop.total("slots") > 0 for loop in found.code.loops)
