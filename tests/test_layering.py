"""Which package may import which: every import of the sources counts, inside functions and for type checkers too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package, or a file beside the packages -> what it may import, further down; whatever is in LEAVES, all may.
ALLOWED = {
    "cute_attn": "modules ops launch jit mods mask",
    "cli": "",
    "commands": "cute_attn cli selftest dist ops predict profile launch jit sim mods mask spec",
    "selftest": "cute_attn ops launch jit mods mask spec decode_reference reference",
    "autotune": "cli predict profile launch jit mask spec",
    "predict": "profile launch jit mask spec",
    "profile": "launch jit mask spec",
    "integrations": "ops checks mods mask",
    "modules": "ops checks mask reference",
    "ops": "backends checks mask mods reference",
    "dist": "backends checks mask reference",
    "backends": "launch mask mods decode_reference reference spec",
    "checks": "mask reference",
    "launch": "jit fwd bwd decode sim mask mods spec",
    "jit": "spec",
    "fwd": "sm90 mods spec",
    "bwd": "sm90 mods spec",
    "decode": "sm90 spec",
    "sm90": "spec",
    "sim": "",
    "decode_reference": "mask reference",
    "reference": "",
    "mods": "mask sm90 spec",
    "mask": "",
    "spec": "",
}
LEAVES = {
    "autocast",
    "backend",
    "caches",
    "columns",
    "custom_ops",
    "directories",
    "eager",
    "elsewhere",
    "errors",
    "kinds",
    "loadable",
    "log",
    "merge",
    "packages",
    "renamed",
    "strict_json",
}
# Folders of the simulator: each imports itself and those behind it.
WINGS = ["host", "skeleton", "schedules", "code", "state"]
# The only modules through which a package is entered.
DOORS = {"sim": {"cute_attn.launch.run", "cute_attn.commands.verify"}}

Graph = dict[str, set[str]]


def sources() -> dict[str, Path]:
    """The modules of the library and of autotune, by name."""
    files = [file for folder in ("cute_attn", "autotune") for file in (ROOT / folder).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(text: str, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """The modules of ours that a module's text imports; under their names those that are not there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            package = module.rsplit(".", up)[0] if node.level and up else module
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            names = [f"{base}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            found = name if name in known or isinstance(node, ast.Import) else base
            if found.split(".")[0] in ("cute_attn", "autotune") and found != module:
                yield found


def graph() -> Graph:
    files = sources()
    return {
        module: set(imported(file.read_text(), module, file.name == "__init__.py", set(files)))
        for module, file in files.items()
    }


def part(module: str) -> str:
    """What of ALLOWED, or of LEAVES, a module belongs to."""
    parts = module.split(".")
    return parts[0] if parts[0] == "autotune" or len(parts) == 1 else parts[1]


def wing(module: str) -> str:
    """The folder of the simulator that a module is in; "" elsewhere."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["cute_attn", "sim"] and len(parts) > 2 else ""


def wrong(imports: Graph, known: set[str]) -> list[str]:
    """The imports that ALLOWED and DOORS do not allow, and those of modules that are not there."""
    found = []
    for module, targets in sorted(imports.items()):
        here = part(module)
        for target in sorted(targets):
            there = part(target)
            inside, leaf = here == there, there in LEAVES
            if target not in known:
                found.append(f"{module} imports {target}, which is not there")
            elif not (inside or leaf or there in ALLOWED.get(here, "").split()):
                found.append(f"{module} imports {target}")
            elif not inside and module not in DOORS.get(there, {module}):
                found.append(f"{module} imports {target} past its door")
    return found


def circle(imports: Graph) -> list[str]:
    """Some names that import each other in a circle; [] if none do."""
    left = {name: set(targets) - {name} for name, targets in imports.items()}
    while left:
        ends = {name for name, targets in left.items() if not targets & left.keys()}
        if not ends:
            break
        left = {name: targets for name, targets in left.items() if name not in ends}
    walk = [min(left)] if left else []
    while walk and walk[-1] not in walk[:-1]:
        walk.append(min(left[walk[-1]] & left.keys()))
    return walk[walk.index(walk[-1]) :] if walk else []


def test_every_import_follows_the_arrows():
    imports = graph()
    assert wrong(imports, set(imports)) == []


def test_every_package_and_file_has_its_place():
    assert {part(module) for module in sources()} == ALLOWED.keys() | LEAVES


def test_the_arrows_make_no_circle():
    assert circle({name: set(below.split()) for name, below in ALLOWED.items()}) == []


def test_modules_import_each_other_in_no_circle():
    assert circle(graph()) == []


def test_the_wings_of_the_simulator_stand_in_their_order():
    found = []
    for module, targets in graph().items():
        for target in targets:
            here, there = wing(module), wing(target)
            if here in WINGS and there in WINGS and WINGS.index(there) < WINGS.index(here):
                found.append(f"{module} imports {target}")
    assert found == []


@pytest.mark.parametrize(
    ("module", "text", "target"),
    [
        ("jit.load", "def load():\n    from cute_attn import sim", "sim"),
        ("jit.load", "if TYPE_CHECKING:\n    from ..launch.run import Kernel", "launch.run"),
        ("bwd.rows", "from ..mask import IntervalMask", "mask"),
        ("mask.intervals", "import cute_attn.ops.plans", "ops.plans"),
        ("mask", "from .. import dist", "dist"),
        ("errors", "from . import mask", "mask"),
        ("backends.kernels", "from ..sim import run", "sim"),
        ("launch.forward", "from .. import sim", "sim"),
        ("profile.sass", "from .errors import Unavailable", "profile.errors"),
    ],
)
def test_a_planted_import_is_found(module, text, target):
    module, target = f"cute_attn.{module}", f"cute_attn.{target}"
    is_package = module == "cute_attn.mask"
    known = set(sources())
    imports = {module: set(imported(text, module, is_package, known))}
    assert imports == {module: {target}}
    (found,) = wrong(imports, known)
    assert found.startswith(f"{module} imports {target}")


def test_a_planted_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
