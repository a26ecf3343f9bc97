"""Whether all ranks make the same call: each sends 16 bytes, and where they differ every rank raises and says how.

Sizes of later exchanges follow from what is compared here, so the comparison comes ahead of a call's first exchange.
Whether it takes place never depends on what a single rank has seen: not on what it keeps, nor on its tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from .comm import send_rows
from .groups import Groups, host_group
from .soundness import REFUSALS, check_sound, first_line, marking

__all__ = ["agree", "refusing"]

DIGEST_SIZE = 16  # bytes that each rank sends to each
REFUSAL = "refused"  # the only field of a rank that refuses its arguments
SHOWN = 120  # characters of a value


def agree(groups: Groups, call: str, fields: Mapping[str, object]) -> None:
    """Returns if every rank makes the same call with the same fields (compared by `repr`), otherwise raises ValueError.

    The error is raised on every rank, and names what differs and on which ranks: they may go on together. RuntimeError,
    and a mark on the groups, where ranks do not come or cannot be reached.
    """
    if groups.world == 1:
        return
    with marking(groups, call):
        group = host_group(groups.whole)
        mine = hashlib.blake2b(repr((call, fields)).encode(), digest_size=DIGEST_SIZE).digest()
        digests = torch.frombuffer(bytearray(mine * groups.world), dtype=torch.uint8).view(groups.world, DIGEST_SIZE)
        one_each = [1] * groups.world
        if torch.equal(send_rows(digests, one_each, one_each, group).wait(), digests):
            return
        calls: list[tuple[str, dict[str, str]]] = [("", {})] * groups.world
        shown = {name: str(value) if name == REFUSAL else repr(value) for name, value in fields.items()}
        dist.all_gather_object(calls, (call, shown), group=group)
    raise ValueError(_difference(calls))


@contextmanager
def refusing(groups: Groups, call: str, tell: bool = True) -> Iterator[None]:
    """Around the checks of a call, ahead of its `agree`: where arguments are bad on some ranks, all ranks raise.

    A rank with bad arguments raises its own error, and the others one that quotes it. tell: whether the call is
    compared at all. Anything else that is raised here keeps this rank from `agree`, and marks the groups.
    """
    check_sound(groups, call)
    try:
        with marking(groups, call, but=REFUSALS):
            yield
    except REFUSALS as error:
        if tell:
            with suppress(ValueError, RuntimeError):  # the rank's own error says more
                agree(groups, call, {REFUSAL: first_line(error)})
        raise


def _difference(calls: Sequence[tuple[str, dict[str, str]]]) -> str:
    """What differs among the calls, of ranks 0, 1, ..., and their fields."""
    names, every = [call for call, _ in calls], [fields for _, fields in calls]
    refused = [
        f"{name}: rank {rank} refused its arguments: {fields[REFUSAL]}"
        for rank, (name, fields) in enumerate(calls)
        if REFUSAL in fields
    ]
    if refused:
        return "; ".join(refused)
    if len(set(names)) > 1:
        return f"the ranks of the group are at different calls: {_by_rank(names)}"
    differing = []
    for name in every[0]:
        values = [fields[name] for fields in every]
        if len(set(values)) > 1:
            differing.append(f"{name} is {_by_rank(values)}")
    return f"{names[0]}: the ranks of the group disagree: {', and '.join(differing)}"


def _by_rank(values: Sequence[str]) -> str:
    """ "a on ranks 0 and 2; b on rank 1"."""
    return "; ".join(
        f"{value[:SHOWN]} on {_ranks([rank for rank, x in enumerate(values) if x == value])}"
        for value in dict.fromkeys(values)
    )


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 8:
        return f"{len(ranks)} ranks ({', '.join(map(str, ranks[:8]))}, ...)"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
