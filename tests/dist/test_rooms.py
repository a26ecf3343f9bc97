"""The rooms of context parallelism import one way: movers read plans, and plans placements."""

import ast
from pathlib import Path

import pytest

import cute_attn.dist

ROOT = Path(cute_attn.dist.__file__).parent
SHARED = {"checks", "config", "cost"}
ALLOWED = {
    "placing": {"placing", "functional", *SHARED},
    "plans": {"plans", "placing", *SHARED},
    "movers": {"movers", "plans", "comm", *SHARED},
}


def imported(path):
    """The parts of `cute_attn.dist` that a file of a room imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level in (1, 2):
            assert node.module is not None, f"{path.name} imports a whole package"
            yield path.parent.name if node.level == 1 else node.module.split(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below_it(room):
    files = list((ROOT / room).glob("*.py"))
    assert len(files) > 3
    for path in files:
        assert set(imported(path)) <= ALLOWED[room], path.name


def test_every_folder_is_a_room():
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == set(ALLOWED)


def test_partial_results_merge_without_context_parallelism():
    tree = ast.parse((ROOT.parent / "merge.py").read_text())
    modules = {x.module for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)}
    assert modules == {"__future__"}
