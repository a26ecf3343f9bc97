"""`cute-attn package`: what it writes without the loader that takes it, and what it refuses."""

import ast
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_compiler import altered, compiled

import cute_attn
from cute_attn import cli
from cute_attn.commands import kernels_layout
from cute_attn.commands.kernels_layout import write_kernels_layout
from cute_attn.jit import cache
from cute_attn.jit.entry import link
from cute_attn.renamed import NAMESPACE, original, relative
from cute_attn.spec.forward import ForwardSpec

PACKAGE = Path(cute_attn.__file__).parent
SOURCES = [file for file in sorted(PACKAGE.rglob("*.py")) if "commands" not in file.parts]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle")
    cache.commit(link(compiled(ForwardSpec())), path)
    return path


def package(*arguments):
    result = CliRunner().invoke(cli.main, ["package", *map(str, arguments)])
    return result.exit_code, result.output


def test_imports_become_relative_and_go_back_to_the_letter():
    for file in SOURCES:
        text = file.read_text()
        rewritten = relative(text, len(file.relative_to(PACKAGE).parts) - 1)
        assert original(rewritten) == text
        assert len(rewritten.splitlines()) == len(text.splitlines())
    assert original("from .here import this  # from there\n") == "from .here import this  # from there\n"


def test_ops_are_of_the_librarys_name():
    assert NAMESPACE == "cute_attn"


@pytest.mark.slow
def test_a_folder_holds_the_library_importing_itself_by_relative_imports_alone(tmp_path):
    (variant,) = write_kernels_layout(tmp_path / "hub", None)
    assert variant == tmp_path / "hub" / "build" / "torch-cuda"
    here = {str(file.relative_to(variant / "cute_attn")) for file in variant.rglob("cute_attn/**/*.py")}
    there = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")}
    assert {name.split("/")[0] for name in there - here} == {"cli.py", "commands", "selftest"}
    assert (variant / "cute_attn" / "sim" / "host" / "stub.c").is_file()
    depth = {file: len(file.relative_to(variant).parts) for file in variant.rglob("*.py")}
    for file, most in depth.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not [name for name in node.names if name.name.partition(".")[0] == "cute_attn"], file
            elif isinstance(node, ast.ImportFrom):
                assert node.level < most or most == 1, file
                assert node.level or node.module.partition(".")[0] not in ("cute_attn", "autotune"), file


def test_what_is_written_is_what_the_metadata_says(tmp_path):
    (variant,) = write_kernels_layout(tmp_path, None)
    said = json.loads((variant / "metadata.json").read_text())
    files = {str(path.relative_to(variant)) for path in variant.rglob("*") if path.is_file()}
    assert set(said["digest"]["files"]) == files - {"metadata.json"}
    assert said["python-depends"] == ["nvidia-cutlass-dsl", "tvm-ffi"]
    assert said["backend"] == {"type": "cuda", "archs": ["9.0a"]}
    assert said["id"].isidentifier()


def test_other_contents_get_another_name_and_equal_ones_the_same(tmp_path, monkeypatch):
    def name(folder):
        (variant,) = write_kernels_layout(tmp_path / folder, None)
        return json.loads((variant / "metadata.json").read_text())["id"]

    first = name("first")
    assert name("second") == first
    monkeypatch.setattr(kernels_layout, "INIT", kernels_layout.INIT + "changed = True\n")
    assert name("third") != first


@pytest.mark.parametrize(("made_with", "cuda"), [("12", "126"), ("13", "130"), ("12 13", "130")])
def test_a_bundle_makes_a_variant_for_its_cuda_and_processor(made_with, cuda, tmp_path, bundle):
    packages = {f"nvidia-cutlass-dsl-libs-cu{number}": "4.8.1" for number in made_with.split()}
    bundle = altered(bundle, tmp_path / "bundle", lambda manifest: manifest["made_from"].update(packages=packages))
    code, output = package("--layout", "kernels", "--output", tmp_path / "hub", "--bundle", bundle)
    assert code == 0, output
    variants = {path.name: path for path in (tmp_path / "hub" / "build").iterdir()}
    assert [name for name in variants if f"build/{name} " in output] == list(variants)
    (ahead,) = variants.keys() - {"torch-cuda"}
    assert re.fullmatch(rf"torch-stable-abi29-cu{cuda}-(x86_64|aarch64)-linux", ahead)
    names = [json.loads((path / "metadata.json").read_text())["id"] for path in variants.values()]
    assert len(set(names)) == 2
    (entry,) = cache.entry_directories(variants[ahead] / "bundle")
    assert entry.name == cache.entry_directories(bundle)[0].name
    assert not (variants["torch-cuda"] / "bundle").exists()


def test_the_oldest_pytorch_is_that_of_the_variants_name():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', text)
    assert f"abi{oldest.replace('.', '')}-" in kernels_layout.AHEAD_OF_TIME


def of_no_cuda(manifest):
    manifest["made_from"]["packages"] = {"apache-tvm-ffi": "0.1.11"}


def of_other_sources(manifest):
    manifest["made_from"]["sources"] = "0" * 64


def of_another_format(manifest):
    manifest["format"] = 2


def for_another_processor(bundle, path):
    """A bundle with a second kernel, which says in its header that it is for the other processor."""
    shutil.copytree(bundle, path)
    made = link(compiled(ForwardSpec(head_dim=64, head_dim_v=64)))
    code = bytearray(made.shared_object)
    code[18] ^= 0x3E ^ 0xB7
    sums = {**made.manifest["sha256"], "kernel.so": hashlib.sha256(code).hexdigest()}
    cache.commit(replace(made, shared_object=bytes(code), manifest={**made.manifest, "sha256": sums}), path)
    return path


def broken(bundle, path):
    shutil.copytree(bundle, path)
    with (cache.entry_directories(path)[0] / "kernel.so").open("ab") as file:
        file.write(b"!")
    return path


def test_a_bundle_that_would_not_serve_is_refused_before_anything_is_written(tmp_path, bundle):
    (tmp_path / "empty").mkdir()
    for path, words in (
        (altered(bundle, tmp_path / "other", of_other_sources), "is none of this cute_attn's: other sources"),
        (altered(bundle, tmp_path / "older", of_another_format), "is none of this cute_attn's: it has the format 2"),
        (altered(bundle, tmp_path / "neither", of_no_cuda), "made with .*cu13 or .*cu12, got apache-tvm-ffi"),
        (for_another_processor(bundle, tmp_path / "mixed"), "for one processor, got (aarch64 and x86_64)"),
        (broken(bundle, tmp_path / "broken"), "is broken: .*kernel.so is not the file that was written there"),
        (tmp_path / "empty", "holds no compiled kernels: a bundle is what"),
        (tmp_path / "absent", "--bundle.*No such file or directory|absent.*No such file"),
    ):
        code, output = package("--layout", "kernels", "--output", tmp_path / "hub", "--bundle", path)
        assert code == 2
        assert re.search(words, output), output
        assert not (tmp_path / "hub").exists()


def test_arguments_are_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for arguments, words in (
        (("--layout", "kernels", "--output", tmp_path), "--output must be new or empty, got .*, which has notes.txt"),
        (("--layout", "wheel", "--output", tmp_path), "'--layout': 'wheel' is not .*kernels"),
        (("--output", tmp_path), "Missing option '--layout'.*kernels"),
        (("--layout", "kernels", "--output", PACKAGE / "hub"), "--output must lie outside of the library.*hub"),
        (("--layout", "kernels"), "Missing option '--output'"),
    ):
        code, output = package(*arguments)
        assert code == 2
        assert re.search(words, output), output
