"""Bugs put into working kernels, and harmless changes: what the simulator must find, and what it must leave alone.

A mutation is an edit of the PTX of a kernel in `kernels`, addressed by the marks in it. Its verdict and its reason were
written before it was run.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Literal

Lines = list[str]
Edit = Callable[[Lines], Lines]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One edit of one workload.

    Args:
        about: what a report must name, one of these: a region of the workload (a barrier or a piece of shared memory),
            a global tensor, "registers" for accumulators and fragments, "barrier N" for a named barrier, "beyond" for
            shared memory beyond what was asked for, "ended CTA" for a CTA of the cluster that is gone, "tensor map" for
            a map that the kernel made.
        edits: applied in order to the lines of the PTX.
    """

    name: str
    workload: str
    family: str
    verdict: Literal["harmful", "benign"]
    why: str
    edits: tuple[Edit, ...]
    about: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.verdict == "harmful") != bool(self.about):
            raise ValueError(f"{self.name}: harmful mutations, and only these, say what a report must name")

    def apply(self, ptx: str) -> str:
        lines = ptx.splitlines()
        for edit in self.edits:
            lines = edit(list(lines))
        changed = "\n".join(lines) + "\n"
        if changed.split() == ptx.split():
            raise ValueError(f"{self.name}: the edit changed nothing")
        return changed


def _found(lines: Lines, mark: str, pattern: str) -> Iterator[int]:
    """For each occurrence of the mark, the first line from there on that matches; from the last to the first."""
    starts = [i for i, line in enumerate(lines) if line.strip() == f"// mark: {mark}"]
    if not starts:
        raise ValueError(f"no mark {mark!r}")
    for start in reversed(starts):
        yield next(i for i in range(start, len(lines)) if re.search(pattern, lines[i]))


def drop(mark: str, pattern: str) -> Edit:
    """Removes the first instruction after each such mark that matches."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, pattern):
            del lines[i]
        return lines

    return edit


def substitute(mark: str, pattern: str, replacement: str) -> Edit:
    """Rewrites what matches in the first line after each such mark in which it does."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, pattern):
            lines[i] = re.sub(pattern, replacement, lines[i], count=1)
        return lines

    return edit


def insert(mark: str, pattern: str, *new: str) -> Edit:
    """Puts lines before the first line after each such mark that matches."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, pattern):
            lines[i:i] = new
        return lines

    return edit


def repeat(mark: str, pattern: str) -> Edit:
    """Doubles the first instruction after each such mark that matches."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, pattern):
            lines.insert(i, lines[i])
        return lines

    return edit


def move(mark: str, pattern: str, after: str) -> Edit:
    """Takes the first instruction after each such mark that matches to behind the next line that matches `after`."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, pattern):
            line = lines.pop(i)
            target = next(j for j in range(i, len(lines)) if re.search(after, lines[j]))
            lines.insert(target + 1, line)
        return lines

    return edit


def rewrite(pattern: str, replacement: str, occurrence: int = 0) -> Edit:
    """Rewrites one occurrence, counted from 0, of a pattern that no mark leads to."""

    def edit(lines: Lines) -> Lines:
        i = [i for i, line in enumerate(lines) if re.search(pattern, line)][occurrence]
        lines[i] = re.sub(pattern, replacement, lines[i], count=1)
        return lines

    return edit


WAIT = r"mbarrier\.try_wait"


def skip_wait(mark: str) -> Edit:
    """Removes the loop that waits for an mbarrier, its try_wait and both branches."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, WAIT):
            end = next(j for j in range(i, len(lines)) if re.search(r"bra\.uni\s+LAB_WAIT", lines[j]))
            del lines[i : end + 1]
        return lines

    return edit


def repeat_wait(mark: str) -> Edit:
    """Waits twice."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, WAIT):
            start = next(j for j in range(i, 0, -1) if lines[j].strip() == "{")
            end = next(j for j in range(i, len(lines)) if lines[j].strip() == "}")
            lines[start:start] = lines[start : end + 1]
        return lines

    return edit


def flip_phase(mark: str) -> Edit:
    """Waits for the other parity."""

    def edit(lines: Lines) -> Lines:
        for i in _found(lines, mark, WAIT):
            match = re.search(r"\], (%r\d+)", lines[i])
            assert match is not None
            lines[i] = lines[i].replace(match.group(0), "], other_phase")
            start = next(j for j in range(i, 0, -1) if lines[j].strip() == "{")
            lines[start + 1 : start + 1] = [".reg .b32 other_phase;", f"xor.b32 other_phase, {match.group(1)}, 1;"]
        return lines

    return edit
