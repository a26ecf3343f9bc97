"""Bundles: built from specs, loaded read-only and without a compiler, proved from source."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from click.testing import CliRunner
from fake_compiler import altered, compiled, forget

import cute_attn
from cute_attn import cli
from cute_attn.errors import Unavailable
from cute_attn.jit import build, cache, fingerprint
from cute_attn.jit import bundle as bundle_module
from cute_attn.jit import obtain as obtain_module
from cute_attn.jit.bundle import load_bundle
from cute_attn.jit.entry import link
from cute_attn.jit.obtain import KernelNotBuilt, obtain
from cute_attn.launch import run as launch
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.tiles import TileConfig

SPEC = ForwardSpec(mask=MaskForm(True))
OTHER = BackwardSpec(mask=MaskForm(True))


@pytest.fixture
def in_threads(monkeypatch):
    """What runs in processes runs in a thread of this one, where the fake compiler is."""
    from cute_attn.jit.parallel import in_processes

    def in_thread(function, items, workers, executor=None):
        with ThreadPoolExecutor(1) as thread:
            yield from in_processes(function, items, workers, thread)

    monkeypatch.setattr(build, "in_processes", in_thread)


@pytest.fixture
def bundle(tmp_path, compiles):
    """A bundle with one kernel, which is nowhere else."""
    root = tmp_path / "bundle"
    cache.commit(link(compiled(SPEC)), root)
    return root


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], env={"COLUMNS": "200"})


def test_a_loaded_bundle_serves_its_kernels_and_is_not_written(bundle, compiles, empty_cache):
    before = {path: path.read_bytes() for path in bundle.rglob("*.*") if path.is_file()}
    assert load_bundle(bundle).specs == (SPEC,)
    assert launch.kernel(SPEC, "sim").ptx == "// ptx"
    launch.kernel(OTHER, "sim")
    assert compiles == [OTHER]
    assert {path: path.read_bytes() for path in bundle.rglob("*.*") if path.is_file()} == before
    assert cache.entry_directories(empty_cache) == [cache.entry_path(OTHER)]


def test_the_environment_lists_bundles(bundle, compiles, monkeypatch, tmp_path):
    second = tmp_path / "second"
    cache.commit(link(compiled(OTHER)), second)
    monkeypatch.setenv("CUTE_ATTN_BUNDLES", f"{bundle}{os.pathsep}{second}")
    obtain(SPEC), obtain(OTHER)
    assert compiles == []


def test_the_bundle_that_was_loaded_last_is_asked_first(bundle, tmp_path):
    newer = tmp_path / "newer"
    cache.commit(link(compiled(SPEC, "// newer")), newer)
    load_bundle(bundle)
    load_bundle(newer)
    assert obtain(SPEC).ptx == "// newer"


def test_what_is_no_bundle_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no compiled kernels"):
        load_bundle(tmp_path)
    monkeypatch.setenv("CUTE_ATTN_BUNDLES", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        obtain(SPEC)


@pytest.mark.parametrize("name", ["kernel.so", "kernel.ptx.z"])
def test_a_broken_kernel_of_a_bundle_gives_one_warning_and_is_compiled(name, bundle, compiles):
    path = cache.entry_path(SPEC, bundle) / name
    path.write_bytes(path.read_bytes()[:-1])
    load_bundle(bundle)
    with pytest.warns(UserWarning, match="is broken and not used") as seen:
        obtain(SPEC)
    obtain(SPEC)
    assert len(seen) == 1
    assert compiles == [SPEC]


def test_a_broken_manifest_in_a_bundle_gives_a_warning_when_it_is_loaded(bundle):
    cache.commit(link(compiled(OTHER)), bundle)
    path = cache.entry_path(SPEC, bundle) / "manifest.json"
    path.write_text(path.read_text().replace("168", "169"))
    with pytest.warns(UserWarning, match="is broken and not used"):
        assert load_bundle(bundle).specs == (OTHER,)


def test_a_bundle_of_another_compiler_is_used_in_the_modes_that_say_so(bundle, compiles, monkeypatch):
    there = fingerprint._packages()
    monkeypatch.setattr(fingerprint, "_packages", lambda: {**there, "nvidia-cutlass-dsl": "99"})
    with pytest.warns(UserWarning, match="made it and 99 is here; CUTE_ATTN_CACHE_MODE=prefer-cached uses it"):
        load_bundle(bundle)
    for mode, expected in (("prefer-cached", []), ("cached-only", []), ("jit", [SPEC])):
        monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", mode)
        obtain(SPEC)
        assert compiles == expected, mode


def test_where_no_compiler_is_installed_its_version_does_not_matter(bundle, compiles, monkeypatch):
    monkeypatch.setattr(fingerprint, "_packages", lambda: {})
    load_bundle(bundle)
    assert obtain(SPEC).ptx == "// ptx"
    assert compiles == []


def test_a_bundle_of_other_sources_is_never_used(bundle, compiles, monkeypatch):
    monkeypatch.setattr(fingerprint, "_sources", lambda parts: "other")
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    with pytest.warns(UserWarning, match="no kernel of the bundle .* is used: other sources of cute_attn's kernels"):
        load_bundle(bundle)
    with pytest.raises(KernelNotBuilt, match=f"the bundle {bundle} has it, but other sources of cute_attn's kernels"):
        obtain(SPEC)


OLDER = json.dumps({**json.loads(SPEC.canonical()), "mask": {"layers": 1, "has_lower": True}})  # of another version


@pytest.fixture
def of_another_version(bundle, tmp_path):
    return altered(bundle, tmp_path / "older", lambda manifest: manifest.update(format=2, spec=OLDER))


def test_kernels_of_another_version_are_told_from_broken_ones(of_another_version, compiles, in_threads):
    with pytest.warns(UserWarning, match="1 kernel cannot be used: it has the format 2, this version .* reads"):
        assert load_bundle(of_another_version).specs == ()
    assert obtain(SPEC).spec == SPEC  # compiled
    assert "outdated" in run("cache", "ls", of_another_version).output
    assert run("cache", "verify", of_another_version).exit_code == 0
    rebuilt = run("cache", "verify", of_another_version, "--rebuild", "--workers", 1)
    assert "it has the format 2" in rebuilt.output
    assert run("cache", "prune", of_another_version, "--outdated").output.startswith("removed 1 directory")


def test_kernels_of_another_version_keep_no_others_from_being_used(of_another_version, compiles):
    cache.commit(link(compiled(OTHER)), of_another_version)
    with pytest.warns(UserWarning, match="1 kernel cannot be used") as seen:
        assert load_bundle(of_another_version).specs == (OTHER,)
    assert len(seen) == 1


def test_a_spec_that_another_version_recorded_is_to_be_recorded_anew(tmp_path):
    result = run("build", "--spec", OLDER, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "MaskForm has no field 'has_lower', 'layers', but is_bounded, predicate, has_certain" in result.stderr
    assert "is to be recorded anew" in result.stderr


@pytest.mark.parametrize(("mask", "window"), [("causal", False), ("sliding_window:left=64,right=0", True)])
def test_build_makes_the_prefill_of_a_window(mask, window, compiles, tmp_path, in_threads):
    flags = ["--op", "fwd", "--mask", mask, "--field", "piece=64", "--workers", 1]
    result = run("build", *flags, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [(s.piece, s.window) for s in compiles] == [(64, window)]


def test_a_bundle_whose_forward_alone_is_outdated_gives_a_warning(bundle, monkeypatch):
    cache.commit(link(compiled(OTHER)), bundle)
    here = fingerprint._sources(("bwd",))
    monkeypatch.setattr(fingerprint, "_sources", lambda parts: "other" if "fwd" in parts else here)
    with pytest.warns(UserWarning, match="no forward kernel of the bundle .* is used: other sources") as seen:
        load_bundle(bundle)
    assert len(seen) == 1
    assert obtain(OTHER).ptx == "// ptx"


def test_a_missing_kernel_names_the_bundle_and_the_cache_that_nearly_have_it(bundle, compiles, monkeypatch, tmp_path):
    obtain(SPEC)
    there = fingerprint._packages()
    monkeypatch.setattr(fingerprint, "_packages", lambda: {**there, "nvidia-cutlass-dsl": "99"})
    monkeypatch.setenv("CUTE_ATTN_BUNDLES", str(bundle))
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(obtain_module, "linker", no_linker)
    with pytest.warns(UserWarning, match="made it and 99 is here"), pytest.raises(KernelNotBuilt) as raised:
        obtain(SPEC)
    of_bundle, of_cache = raised.value.near
    assert of_bundle.startswith(f"the bundle {bundle} has it, but nvidia-cutlass-dsl ")
    assert of_bundle.endswith("CUTE_ATTN_CACHE_MODE=prefer-cached uses it all the same")
    assert of_cache.startswith(f"the cache {tmp_path / 'cache'} has it, but nvidia-cutlass-dsl ")
    assert of_bundle in str(raised.value)
    assert of_cache in str(raised.value)


def test_a_missing_kernel_names_what_has_it_with_another_tile_or_for_another_installation(
    bundle, monkeypatch, compiles
):
    load_bundle(bundle)
    monkeypatch.setattr(obtain_module, "linker", no_linker)
    with pytest.raises(KernelNotBuilt, match=r"has it with the tile 128x128, 2 stages, ping-pong;"):
        obtain(replace(SPEC, tile=TileConfig(128, 96)))
    with pytest.raises(KernelNotBuilt) as raised:
        obtain(replace(SPEC, sink=True))
    assert raised.value.near == ()


def test_a_missing_kernel_names_what_has_it_with_other_heads_that_share_tiles(bundle, monkeypatch, compiles):
    load_bundle(bundle)
    monkeypatch.setattr(obtain_module, "linker", no_linker)
    with pytest.raises(KernelNotBuilt, match=r"bundle has it with packed_heads 1;"):
        obtain(replace(SPEC, packed_heads=8))
    cache.commit(link(compiled(replace(SPEC, packed_heads=16))), bundle)
    cache.commit(link(compiled(replace(SPEC, packed_heads=8, tile=TileConfig(128, 96)))), bundle)
    load_bundle(bundle)
    with pytest.raises(KernelNotBuilt, match=r"bundle has it with the tile 128x96, .*, and with packed_heads 1, 16;"):
        obtain(replace(SPEC, packed_heads=8))
    with pytest.raises(KernelNotBuilt) as raised:
        obtain(replace(SPEC, packed_heads=8, sink=True))
    assert raised.value.near == ()


def no_linker():
    raise Unavailable("a kernel has to be linked once, and none was found")


def test_a_missing_kernel_says_that_the_cache_has_it_for_more_packages(compiles, monkeypatch):
    obtain(SPEC)
    there = fingerprint._packages()
    monkeypatch.setattr(fingerprint, "_packages", lambda: {k: v for k, v in there.items() if "cu1" not in k})
    monkeypatch.setattr(obtain_module, "linker", no_linker)
    with pytest.raises(KernelNotBuilt, match=r"it was made where nvidia-cutlass-dsl-libs-cu1.* is installed too"):
        obtain(SPEC)


def test_where_only_the_half_that_runs_kernels_is_installed_a_missing_kernel_is_named(monkeypatch, tmp_path):
    half = tmp_path / "cutlass" / "_mlir" / "_mlir_libs"
    (half / "_cutlass_ir").mkdir(parents=True)
    (tmp_path / "cutlass" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "cutlass", raising=False)

    def refuse(spec):
        raise RuntimeError("No CTK flavor installed: expected one or more of ...")

    monkeypatch.setattr(obtain_module, "compile", refuse)
    with pytest.raises(KernelNotBuilt, match="only the half that runs kernels is installed, not the compiler, and no"):
        obtain(SPEC)
    (half / "_cutlass_ir.cu12.so").write_text("")
    with pytest.raises(RuntimeError, match="No CTK flavor") as raised:  # some other fault, which is not hidden
        obtain(SPEC)
    assert not isinstance(raised.value, KernelNotBuilt)


def test_a_tilde_leads_to_the_bundles_of_the_home_directory(bundle, monkeypatch):
    monkeypatch.setenv("HOME", str(bundle.parent))
    assert load_bundle("~/bundle").specs == (SPEC,)
    monkeypatch.setattr(bundle_module, "_loaded", [])
    monkeypatch.setenv("CUTE_ATTN_BUNDLES", "~/bundle")
    assert obtain(SPEC).ptx == "// ptx"


def test_bundles_and_recorders_print_in_a_line(bundle):
    assert repr(load_bundle(bundle)) == f"Bundle({str(bundle)!r}, 1 kernels)"
    with cute_attn.record_specs() as recorder:
        assert repr(recorder) == "Recorder(0 kernels)"


# ---------------------------------------------------------------- recording and building


def test_a_recorder_lists_what_is_used_also_from_memory_and_only_while_it_is_open(compiles, tmp_path):
    launch.kernel(SPEC, "sim")
    with cute_attn.record_specs() as recorder, cute_attn.record_specs() as inner:
        launch.kernel(SPEC, "sim")
        launch.kernel(OTHER, "sim")
        launch.kernel(SPEC, "sim")
    launch.kernel(ForwardSpec(), "sim")
    assert recorder.specs == inner.specs == (SPEC, OTHER)
    recorder.save(tmp_path / "specs.json")
    assert build.load_specs(tmp_path / "specs.json") == [SPEC, OTHER]


def test_a_recorder_that_saw_nothing_says_so_when_it_saves_and_so_does_build(tmp_path):
    with cute_attn.record_specs() as recorder:
        pass
    with pytest.warns(UserWarning, match="will hold no kernel: backend 'reference'.* asks for none"):
        recorder.save(tmp_path / "specs.json")
    result = run("build", "--output", tmp_path / "out", "--specs", tmp_path / "specs.json")
    assert result.exit_code == 2
    assert f"{tmp_path / 'specs.json'} holds no kernel: backend 'reference'" in result.stderr


def test_what_was_recorded_and_cannot_be_written_is_said_in_a_sentence(tmp_path):
    with cute_attn.record_specs() as recorder:
        recorder.add(SPEC)
    with pytest.raises(FileNotFoundError, match=r"what was recorded cannot be written: .*No such file or directory"):
        recorder.save(tmp_path / "nowhere" / "specs.json")


def test_what_was_recorded_is_built_and_runs_where_nothing_may_be_compiled(
    compiles, tmp_path, in_threads, monkeypatch, empty_cache
):
    with cute_attn.record_specs() as recorder:
        launch.kernel(SPEC, "sim")
    recorder.save(tmp_path / "specs.json")
    result = run("build", "--specs", tmp_path / "specs.json", "--spec", OTHER.canonical(), "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 kernels in" in result.output
    assert compiles == [SPEC, OTHER], "a kernel that the cache has is copied"
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    forget()
    cute_attn.load_bundle(tmp_path / "out")
    for spec in (SPEC, OTHER):
        assert launch.kernel(spec, "sim").ptx == "// ptx"


def test_build_makes_the_specs_that_its_flags_name(compiles, tmp_path, in_threads):
    result = run(
        "build", "--mask", "causal", "--head-dim", "64", "--head-dim", "192/128", "--dtype", "fp16", "--sink",
        "--output", tmp_path / "out", "--workers", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = {(s.op, s.dtype, s.head_dim, s.head_dim_v, s.mask.is_bounded) for s in compiles}
    assert found == {(op, "fp16", d, dv, True) for op in ("fwd", "bwd") for d, dv in ((64, 64), (192, 128))}
    assert all(s.sink for s in compiles if s.op == "fwd")


def test_build_makes_backwards_for_masks_of_each_query_head(compiles, tmp_path, in_threads):
    flags = ["--planes-by-head", "--op", "bwd", "--deterministic"]
    result = run("build", "--mask", "causal", *flags, "--output", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert [(s.op, s.planes_by_head, s.deterministic) for s in compiles] == [("bwd", True, True)]


@pytest.mark.parametrize("softcap", [False, True])
@pytest.mark.parametrize(
    "mask", ["full", "causal", "sliding_window:left=64,right=0", "global_tokens:positions=0/7/200,left=32,right=0"]
)
def test_what_flags_build_is_what_launches_ask_for(mask, softcap, compiles, tmp_path, in_threads, monkeypatch):
    import torch

    from cute_attn import sim
    from cute_attn.launch.backward import backward
    from cute_attn.launch.forward import forward
    from cute_attn.mask import from_spec

    flags = ["--softcap"] * softcap
    result = run("build", "--mask", mask, "--seqlen", 512, "--head-dim", 64, *flags, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    load_bundle(tmp_path / "out")
    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    q, k, v = torch.randn(3, 1, 512, 2, 64, dtype=torch.bfloat16)
    options = {"softmax_scale": 0.1, "softcap": 5.0 * softcap, "backend": "sim"}
    out, lse, _ = forward(q, k, v, from_spec(mask, 512), **options)
    backward(out, q, k, v, out, lse, from_spec(mask, 512), **options)


@pytest.mark.parametrize("ratio", [1, 2, 3, 6, 8, 12])
def test_what_build_makes_for_heads_is_what_calls_with_any_number_of_rows_ask_for(
    ratio, compiles, tmp_path, in_threads, monkeypatch
):
    import torch

    from cute_attn import sim
    from cute_attn.launch.forward import forward
    from cute_attn.mask import causal

    flags = ["--op", "fwd", "--mask", "causal", "--mask", "full", "--head-dim", 64]
    flags += ["--heads", f"{2 * ratio}/2", "--heads", "8/8"]
    result = run("build", *flags, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    bundle = load_bundle(tmp_path / "out")
    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    for rows in (1, 8, 16, 17, 33, 48, 64, 65, 80, 96, 128, 130, 192, 256, 300):
        q, k, v = (torch.randn(1, rows, heads, 64, dtype=torch.bfloat16) for heads in (2 * ratio, 2, 2))
        forward(q, k, v, causal(rows), softmax_scale=0.1, backend="sim")
    assert all(spec.packed_heads == 1 for spec in bundle.specs) == (ratio == 1)


def test_heads_add_kernels_to_forwards_alone_and_each_once(compiles, tmp_path, in_threads):
    flags = ["--mask", "causal", "--head-dim", 64, "--sink", "--heads", "64/8", "--heads", "8/1", "--heads", "6/1"]
    result = run("build", *flags, "--output", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    forwards = [spec for spec in compiles if spec.op == "fwd"]
    assert [spec.op for spec in compiles if spec not in forwards] == ["bwd"]
    assert sorted(spec.packed_heads for spec in forwards) == [1, 2, 8]
    assert {replace(spec, packed_heads=1) for spec in forwards} == {forwards[0]}


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("parts", [1, 3])
def test_what_flags_build_of_decode_is_what_calls_ask_for(
    page_size, parts, compiles, tmp_path, in_threads, monkeypatch, empty_cache
):
    import torch

    from cute_attn import sim

    flags = ["--op", "decode", "--mask", "causal", "--head-dim", 64]
    flags += ["--field", f"split={str(parts > 1).lower()}"] + ["--field", f"piece={page_size}"] * bool(page_size)
    result = run("build", *flags, "--output", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    load_bundle(tmp_path / "out")
    asked = []
    monkeypatch.setattr(sim, "run", lambda *arguments, **options: asked.append(arguments))
    q, cache = torch.randn(2, 1, 4, 64, dtype=torch.bfloat16), torch.randn(2, 2, 16, 1, 64, dtype=torch.bfloat16)
    pages = None if page_size is None else torch.arange(2, dtype=torch.int32)[:, None]
    with cute_attn.backend("sim"):
        cute_attn.flash_attn_with_kvcache(q, *cache, cache_seqlens=9, page_table=pages, num_splits=parts, causal=True)
    assert len(asked) == 1


def test_a_kernel_that_cannot_be_built_is_named_and_the_others_are_built(compiles, tmp_path, in_threads, monkeypatch):
    from cute_attn.jit import obtain as module

    works = module.compile

    def refuse(spec):
        if spec == OTHER:
            raise ValueError("does not fit")
        return works(spec)

    monkeypatch.setattr(module, "compile", refuse)
    result = run("build", "--spec", SPEC.canonical(), "--spec", OTHER.canonical(), "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "does not fit" in result.output
    assert len(cache.entry_directories(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to build"),
        (["--spec", "{"], "--spec is not JSON"),
        (["--spec", '{"op":"fwd"}'], "spec 0 is not valid"),
        (["--spec", '{"op":"fwd","op":"bwd"}'], "the key 'op' stands more than once"),
        (["--spec", SPEC.canonical(), "--softcap"], "--softcap goes with --mask"),
        (["--mask", "causal", "--op", "bwd", "--sink"], "--sink goes with --op fwd"),
        (["--mask", "causal", "--op", "fwd", "--planes-by-head"], "--planes-by-head goes with --op bwd"),
        (["--spec", SPEC.canonical(), "--planes-by-head"], "--planes-by-head goes with --mask"),
        (["--spec", SPEC.canonical(), "--heads", "8/1"], "--heads goes with --mask"),
        (["--mask", "causal", "--op", "bwd", "--heads", "8/1"], "--heads goes with --op fwd"),
        (
            ["--mask", "causal", "--heads", "8/1", "--field", "packed_heads=8"],
            "--heads names what --field packed_heads",
        ),
        (["--mask", "causal", "--heads", "8/1", "--field", "softmax=exact"], "share no tiles with --field softmax="),
        *[
            (
                ["--mask", "causal", "--heads", bad],
                f"a multiple of the key heads, and key heads, such as 32/8, got '{bad}'",
            )
            for bad in ("8", "8/3", "2/8", "8/0", "0/1", "8/2/1", "a/b", "-8/1", "\u00b2/1")
        ],
        (["--mask", "cuasal"], "unknown mask 'cuasal'"),
        (["--mask", "causal", "--head-dim", "a"], "expected a head_dim such as 128"),
    ],
)
def test_bad_input_to_build_ends_with_one_line(arguments, message, tmp_path):
    result = run("build", "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


# ---------------------------------------------------------------- ls, verify, prune


def test_ls_lists_kernels_with_their_state(bundle, monkeypatch):
    path = cache.commit(link(compiled(OTHER)), bundle).directory / "manifest.json"
    path.write_text("{}")
    result = run("cache", "ls", bundle)
    assert "current" in result.output
    assert "broken" in result.output
    assert "2 kernels" in result.output
    monkeypatch.setattr(fingerprint, "_sources", lambda parts: "other")
    assert "outdated" in run("cache", "ls", bundle).output


def test_verify_finds_every_altered_file(bundle):
    assert run("cache", "verify", bundle).exit_code == 0
    path = cache.entry_path(SPEC, bundle) / "kernel.so"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    result = run("cache", "verify", bundle)
    assert result.exit_code == 1
    assert "its hash differs" in result.output
    assert "0 of 1 kernels" in result.output


def test_verify_finds_a_spec_that_this_version_does_not_have(bundle, tmp_path):
    wrong = altered(bundle, tmp_path / "wrong", lambda manifest: manifest.update(spec=OLDER))
    result = run("cache", "verify", wrong)
    assert result.exit_code == 1
    assert "0 of 1 kernels" in result.output


def test_verify_finds_an_entry_under_another_name(bundle):
    path = cache.entry_path(SPEC, bundle)
    path.rename(path.with_name(path.name[:-4] + "0000"))
    assert "is not named by its content" in " ".join(run("cache", "verify", bundle).output.split())


def test_rebuilding_proves_a_bundle_or_names_what_differs(bundle, in_threads, monkeypatch):
    monkeypatch.setattr(build, "compile", compiled)
    result = run("cache", "verify", bundle, "--rebuild")
    assert result.exit_code == 0, result.output
    assert "1 of 1 kernels" in result.output
    assert "built anew with equal hashes" in " ".join(result.output.split())
    monkeypatch.setattr(build, "compile", lambda spec: compiled(spec, "// other"))
    result = run("cache", "verify", bundle, "--rebuild")
    assert result.exit_code == 1
    assert "built anew, the PTX differ" in result.output


def test_prune_says_what_it_removed(bundle):
    os.utime(cache.entry_path(SPEC, bundle), (0, 0))
    assert run("cache", "prune", bundle).output.startswith("removed 0 directories")
    assert run("cache", "prune", bundle, "--days", "30").output.startswith("removed 1 directory")


# ---------------------------------------------------------------- the real compiler

PROGRAM = """
import importlib.abc, json, sys, time
import torch

class NoCompiler(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cutlass":
            raise ModuleNotFoundError(f"{name} is not here", name=name)

sys.meta_path.insert(0, NoCompiler())
import cute_attn
cute_attn.load_bundle(sys.argv[1])
q, k, v = (torch.randn(96, 2, 64).bfloat16() for _ in range(3))
ranges = torch.tensor([[0, 96]])
results = {}
for name in ("sim", "reference"):
    with cute_attn.backend(name):
        results[name], _ = cute_attn.flex_flash_attn_func(q, k, v, ranges, ranges, attn_type_map=[1])
print(float((results["sim"].float() - results["reference"].float()).abs().max()))
assert "cutlass" not in sys.modules
"""


@pytest.mark.slow
def test_a_bundle_runs_in_a_process_in_which_importing_the_compiler_fails(tmp_path):
    spec = {**json.loads(ForwardSpec(head_dim=64, head_dim_v=64, mask=MaskForm(True)).canonical())}
    environment = {**os.environ, "CUTE_ATTN_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CUTE_ATTN_CACHE_MODE", None)
    tool = [sys.executable, "-c", "from cute_attn.cli import main; main()"]
    command = [*tool, "build", "--spec", json.dumps(spec), "--output", str(tmp_path / "bundle"), "--workers", "1"]
    built = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert built.returncode == 0, built.stdout + built.stderr
    environment |= {"CUTE_ATTN_CACHE_DIR": str(tmp_path / "fresh"), "CUTE_ATTN_CACHE_MODE": "cached-only"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "bundle")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 0.05
    command = [*tool, "cache", "verify", str(tmp_path / "bundle"), "--rebuild", "--workers", "1"]
    proved = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert "built anew with equal hashes" in " ".join(proved.stdout.split())


@pytest.mark.parametrize("dims", ["0", "128/0"])
def test_build_refuses_a_head_dim_of_nothing(dims, tmp_path):
    arguments = ["build", "--output", str(tmp_path), "--mask", "causal", "--head-dim", dims]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "multiples of 8 up to 256" in result.output
