"""Where files are kept, and that a place which cannot be used costs one warning and a sentence, never an exception."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor as Threads
from pathlib import Path

import pytest

from cute_attn import directories
from cute_attn.directories import cache_directory, obstacle

ROOT = Path(__file__).parent.parent
NOBODY = 65534
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    monkeypatch.setattr(directories, "_warned", set())


@pytest.fixture
def tmp_path():
    """That of pytest is closed to other users."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- which place


def test_the_cache_is_where_the_platform_keeps_what_can_be_made_again(monkeypatch):
    monkeypatch.delenv("CUTE_ATTN_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    for platform, chosen, expected in (
        ("linux", None, "/home/somebody/.cache/cute_attn"),
        ("linux", "/var/tmp", "/var/tmp/cute_attn"),
        ("linux", "relative/paths/are/void", "/home/somebody/.cache/cute_attn"),
        ("darwin", "/var/tmp", "/home/somebody/Library/Caches/cute_attn"),
    ):
        monkeypatch.setattr(directories.sys, "platform", platform)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if chosen:
            monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert cache_directory() == Path(expected)


def test_a_tilde_in_the_environment_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", "~/x")
    assert cache_directory() == Path("/home/somebody/x")


def test_without_a_home_there_is_no_cache_and_the_error_says_what_to_do(monkeypatch):
    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for chosen in (None, "~/x"):
        monkeypatch.delenv("CUTE_ATTN_CACHE_DIR", raising=False)
        if chosen:
            monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", chosen)
        with pytest.raises(OSError, match="names a home directory; CUTE_ATTN_CACHE_DIR names another place"):
            cache_directory()


def test_an_obstacle_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert obstacle(tmp_path) == obstacle(tmp_path / "not" / "yet") == ""
    assert (
        obstacle(tmp_path / "file")
        == obstacle(tmp_path / "file" / "a" / "b")
        == f"{tmp_path / 'file'} is a file, not a directory"
    )
    assert obstacle(tmp_path / "link" / "a") == f"{tmp_path / 'link'} is a link that leads nowhere"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="has no file system that takes no files")
def test_a_place_that_takes_no_files_is_an_obstacle_to_root_too():
    assert obstacle(Path("/proc/kernels")).startswith("/proc cannot be written")


def test_the_cache_is_said_to_be_unusable_once_for_each_directory(monkeypatch, recwarn):
    for place in ("/one", "/one", "/two"):
        monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", place)
        directories.warn_unusable(PermissionError(13, "Permission denied", f"{place}/kernels"))
    assert [str(w.message).split(": ", 1)[1] for w in recwarn] == [
        f"{place}/kernels: Permission denied; CUTE_ATTN_CACHE_DIR names another place" for place in ("/one", "/two")
    ]


# ---------------------------------------------------------------- as another user

# Everything of the library that asks for the cache: kernels compiled and loaded, the stub, the tuned tables. Once as
# whoever runs the tests, who may read the files of Python, then with everything forgotten as somebody who may not.
PROGRAM = """
import os, sys, tempfile, warnings
sys.path.insert(0, sys.argv[1])
import numpy, torch
from cute_attn import directories
from cute_attn.jit import obtain
from cute_attn.launch import run as launch
from cute_attn.launch import tuned
from cute_attn.spec.forward import ForwardSpec
from cute_attn.mask import causal
from cute_attn.sim.host import stub
from fake_compiler import compiled

tuned.gpu_of = lambda device: ("NVIDIA H200", 132)
obtain.compile = compiled
launch._open = lambda shared_object, backend: shared_object

def everything():
    kernels = [launch.kernel(spec, "sim") for spec in (ForwardSpec(), ForwardSpec(sink=True)) for _ in range(2)]
    assert kernels[0] is kernels[1] and kernels[2] is kernels[3]
    stub.library()
    tile = tuned.tuned_tile("fwd", "bf16", (128, 128), (4, 4), causal(256), torch.device("cuda"), ForwardSpec().tile)
    assert tile == ForwardSpec().tile

chosen = os.environ.pop("CUTE_ATTN_CACHE_DIR", None)
with tempfile.TemporaryDirectory() as warm:
    os.environ["CUTE_ATTN_CACHE_DIR"] = warm
    everything()
del os.environ["CUTE_ATTN_CACHE_DIR"]
if chosen:
    os.environ["CUTE_ATTN_CACHE_DIR"] = chosen
launch._kernels.clear(), tuned.forget(), stub._path.cache_clear(), stub.library.cache_clear()
for line in sys.argv[2:]:
    exec(line)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    everything()
print(*[str(w.message) for w in seen], sep="\\n", end="")
"""


def as_somebody(tmp_path, *after, lines=(), **environment):
    """Runs PROGRAM as a user without rights, `lines` before it has lost them, `after` after; returns its warnings."""
    become = [f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"] if os.getuid() == 0 else []
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o777)
    base = {k: v for k, v in os.environ.items() if k not in ("CUTE_ATTN_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "tests"), *lines, *become, *after],
        cwd=scratch, capture_output=True, text=True, timeout=300,
        env={**base, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not list(scratch.iterdir()), "nothing stays behind"
    return result.stdout.splitlines()


def closed(tmp_path):
    """A directory that is there and may not be entered."""
    path = tmp_path / "closed"
    (path / "cache" / "kernels").mkdir(parents=True)
    path.chmod(0o700 if os.getuid() == 0 else 0o000)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", ["home of another user", "closed itself", "in a closed parent"])
def test_a_cache_that_may_not_be_entered_costs_one_warning(case, tmp_path):
    path = closed(tmp_path)
    environment = {
        "home of another user": {"HOME": str(path)},
        "closed itself": {"CUTE_ATTN_CACHE_DIR": str(path)},
        "in a closed parent": {"CUTE_ATTN_CACHE_DIR": str(path / "cache")},
    }[case]
    (warning,) = as_somebody(tmp_path, **environment)
    path.chmod(0o700)
    assert "kernels made now live in memory only" in warning
    assert str(path) in warning
    assert "Permission denied" in warning


@pytest.mark.slow
@pytest.mark.parametrize("where", [pytest.param("", marks=pytest.mark.slow), "cache"])
def test_a_file_in_the_place_of_the_cache_costs_one_warning(where, tmp_path):
    (tmp_path / "file").write_text("")
    (warning,) = as_somebody(tmp_path, CUTE_ATTN_CACHE_DIR=str(tmp_path / "file" / where))
    assert "kernels made now live in memory only" in warning


@pytest.mark.slow
def test_a_read_only_cache_without_the_stub_costs_one_warning(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o555)
    (warning,) = as_somebody(tmp_path, CUTE_ATTN_CACHE_DIR=str(tmp_path / "cache"))
    assert "Permission denied" in warning
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_no_home_and_no_name_cost_one_warning(tmp_path):
    line = "import pwd; pwd.getpwuid = lambda uid: {}[uid]"
    (warning,) = as_somebody(tmp_path, line)
    assert "neither HOME nor the user database names a home directory" in warning


@pytest.mark.slow
def test_a_cache_that_can_be_written_costs_none(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert as_somebody(tmp_path, CUTE_ATTN_CACHE_DIR=str(tmp_path / "cache")) == []
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["kernels", "locks", "sim"]


@pytest.mark.slow
def test_an_entry_that_may_not_be_read_costs_one_warning_and_stays(tmp_path):
    cache = tmp_path / "cache"
    lines = [
        f"os.environ['CUTE_ATTN_CACHE_DIR'] = {str(cache)!r}; everything(); launch._kernels.clear()",
        f"for path in __import__('pathlib').Path({str(cache)!r}).rglob('kernel.so'): path.chmod(0)",
    ]
    (warning,) = as_somebody(tmp_path, lines=lines)
    assert "kernel.so: Permission denied" in warning
    assert len(list(cache.rglob("kernel.so"))) == 2
    assert not list(cache.rglob(".broken-*"))


@pytest.mark.slow
def test_a_cache_from_which_nothing_may_be_executed_serves_all_the_same(tmp_path):
    """Kernels and the stub are loaded from memory."""
    cache = tmp_path / "cache"
    cache.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec,mode=777", "tmpfs", cache], capture_output=True
    ).returncode:
        pytest.skip("only who may mount can make such a place")
    try:
        assert as_somebody(tmp_path, CUTE_ATTN_CACHE_DIR=str(cache)) == []
        assert as_somebody(tmp_path, CUTE_ATTN_CACHE_DIR=str(cache)) == []
        assert len(list(cache.rglob("*.so"))) == 3
    finally:
        subprocess.run(["umount", cache], check=True)


# ---------------------------------------------------------------- what the commands say


def said(environment, *arguments):
    """Exit code, output and errors of a command that runs as somebody without rights."""
    from click.testing import CliRunner

    from cute_attn import cli
    from cute_attn.commands import build, cache, doctor  # noqa: F401  while the files of Python can be read

    def work():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        result = CliRunner().invoke(cli.main, [str(a) for a in arguments], env={"COLUMNS": "300", **environment})
        answers.put((result.exit_code, result.stdout, result.stderr))

    answers = FORK.Queue()
    process = FORK.Process(target=work)
    process.start()
    answer = answers.get(timeout=60)
    process.join(60)
    return answer


@pytest.mark.parametrize("command", ["ls", "verify", "prune"])
@pytest.mark.parametrize("how", ["by environment", "by argument"])
def test_a_cache_that_may_not_be_entered_is_said_in_a_line(tmp_path, command, how):
    path = closed(tmp_path)
    arguments = ["cache", command] + [path] * (how == "by argument")
    code, _, errors = said({"CUTE_ATTN_CACHE_DIR": str(path)}, *arguments)
    path.chmod(0o700)
    assert code == 2
    assert errors.count("\n") == 1
    assert str(path) in errors
    assert "Permission denied" in errors
    assert "Errno" not in errors


def test_doctor_and_build_say_that_a_cache_or_a_bundle_may_not_be_entered(tmp_path):
    path = closed(tmp_path)
    code, output, errors = said({"CUTE_ATTN_CACHE_DIR": str(path / "cache")}, "doctor")
    assert code == 0, errors
    assert f"{path / 'cache'}: Permission denied, so that kernels live in memory only" in output
    assert errors == ""
    code, _, errors = said({}, "build", "--mask", "causal", "--output", path / "cache")
    path.chmod(0o700)
    assert code == 2
    assert errors.count("\n") == 1
    assert "cannot be written to" in errors
    assert "Permission denied" in errors


def test_what_cannot_be_pruned_is_said(tmp_path):
    kernels = tmp_path / "cache" / "kernels" / "00"
    (kernels / ".broken-x").mkdir(parents=True)
    kernels.chmod(0o555)
    code, output, errors = said({}, "cache", "prune", tmp_path / "cache")
    kernels.chmod(0o755)
    assert (code, output) == (2, "")
    assert "0 removed, 1 could not be, the first for " in errors
    assert "Permission denied" in errors


def test_a_bundle_is_built_where_the_cache_cannot_be_reached_with_one_line_about_it(tmp_path, monkeypatch, recwarn):
    sys.path.append(str(ROOT / "tests"))
    from click.testing import CliRunner
    from fake_compiler import compiled

    from cute_attn import cli
    from cute_attn.jit import build, cache, obtain
    from cute_attn.jit.parallel import in_processes
    from cute_attn.spec.forward import ForwardSpec

    sys.path.remove(str(ROOT / "tests"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(obtain, "compile", compiled)
    monkeypatch.setattr(
        build, "in_processes", lambda f, items, workers, executor: in_processes(f, items, 1, Threads(1))
    )
    specs = [a for sink in (False, True) for a in ("--spec", ForwardSpec(sink=sink).canonical())]
    result = CliRunner().invoke(cli.main, ["build", *specs, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert f"alone: the cache cannot be used: {tmp_path / 'file'} is a file, not a directory\n" in result.output
    assert len(cache.entry_directories(tmp_path / "out")) == 2
    assert not [w for w in recwarn if issubclass(w.category, directories.CacheUnusable)]
