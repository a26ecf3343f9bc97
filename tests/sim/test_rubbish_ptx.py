"""Whatever PTX comes, no error is another than one of the simulator's, with the line."""

import random
import re

import kernels
import pytest
from kernels.warps import warp_gram

from cute_attn.sim.code.program import Program
from cute_attn.sim.errors import SimError

MODIFIERS = [
    ".v2",
    ".v4",
    ".b33",
    ".f16x2",
    ".noinc",
    ".sync",
    ".foo",
    ".shared::cluster",
    ".u8",
    ".im2col",
    ".sat",
    "",
]
OPERANDS = [
    "0",
    "-1",
    "%p1",
    "{",
    "}",
    "{%r1, %r2}",
    "[%rd1]",
    "%r1|%p1",
    "!%p1",
    "_",
    "0f3F800000",
    "foo",
    "9" * 20,
    "|",
]
TOKENS = re.compile(r"\s+|[\w$%]+|::|.", re.S)


def without_a_character(line, chosen):
    return line.replace(chosen.choice(",;[]{}%."), "", 1)


def with_another_modifier(line, chosen):
    found = re.findall(r"\.\w+", line)
    return line.replace(chosen.choice(found), chosen.choice(MODIFIERS), 1) if found else line


def with_another_token(line, chosen):
    tokens = TOKENS.findall(line) or [""]
    tokens[chosen.randrange(len(tokens))] = chosen.choice(OPERANDS)
    return "".join(tokens)


def with_other_operands(line, chosen):
    operands = line.split(",")
    if chosen.random() < 0.5:
        del operands[chosen.randrange(len(operands))]
    else:
        operands.insert(chosen.randrange(len(operands) + 1), chosen.choice(OPERANDS))
    return ",".join(operands)


def declared_otherwise(line, chosen):
    kind = chosen.choice([".v2", ".v4", ".v3", ".align 3", ".b128", ".b33", ""])
    return f".reg {kind} .b32 %z{chosen.choice(['', '<3>', '<', '[4]', ', %y'])}; {line}"


EDITS = [without_a_character, with_another_modifier, with_another_token, with_other_operands, declared_otherwise]


def translated(text):
    """Parses, and makes functions of everything. What it refuses has a line, but for an entry that is not there."""
    entry = re.search(r"\.entry\s+([\w$]+)", text)
    try:
        program = Program(text, entry.group(1) if entry else "kernel")
        for node in program.nodes:
            if node.groups and node.function is None:
                program.compile(node)
    except SimError as error:
        if error.place.line is None and "no such entry" not in str(error):
            raise AssertionError(f"no line: {error}") from error


@pytest.fixture(
    scope="module",
    params=[kernels.column_sums, pytest.param(warp_gram, marks=pytest.mark.slow)],
    ids=lambda kernel: kernel.__name__,
)
def text(request):
    return request.param().__ptx__


@pytest.mark.parametrize("edit", EDITS)
def test_edited_lines_are_understood_or_refused(edit, text):
    chosen, lines = random.Random(edit.__name__), text.split("\n")
    for _ in range(30):
        i = chosen.randrange(len(lines))
        translated("\n".join([*lines[:i], edit(lines[i], chosen), *lines[i + 1 :]]))


def test_text_that_ends_early_or_is_out_of_order_is_understood_or_refused(text):
    chosen, lines = random.Random(16), text.split("\n")
    for _ in range(30):
        translated(text[: chosen.randrange(len(text))])
        i, j = (chosen.randrange(len(lines)) for _ in range(2))
        swapped = list(lines)
        swapped[i], swapped[j] = lines[j], lines[i]
        translated("\n".join(swapped))
