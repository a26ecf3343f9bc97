"""Skeletons by hand: rings, turns and counters as kernels have them, a few steps a warp."""

from cute_attn.sim.skeleton.program import Skeleton
from cute_attn.sim.state.steps import (
    ADD,
    ARRIVE,
    COPY,
    INIT,
    MEET,
    PASS,
    UNTIL,
    WAIT,
    Step,
    Thing,
    Warp,
)

CTA = (0, 0, 0)


def mbarrier(number, cta=CTA):
    return Thing("mbarrier", cta, 8 * number)


def counter(number):
    return Thing("counter", "flags", 4 * number)


def init(thing, count):
    return Step(INIT, thing, count)


def arrive(thing, expected_bytes=0):
    return Step(ARRIVE, thing, 1, expected_bytes)


def copy(thing, size):
    return Step(COPY, thing, size)


def wait(thing, parity):
    return Step(WAIT, thing, parity)


def come(number, threads, cta=CTA):
    """bar.arrive"""
    return [Step(MEET, Thing("barrier", cta, number), 32, threads)]


def meet(number, threads=0, cta=CTA):
    """bar.sync"""
    return [*come(number, threads, cta), Step(PASS, Thing("barrier", cta, number))]


def multiply(warps=2):
    """A product of a warpgroup."""
    thing = Thing("products", CTA, 0)
    return [Step(MEET, thing, 32, 32 * warps), Step(PASS, thing)]


def add(thing, count=1):
    return Step(ADD, thing, count)


def until(thing, count):
    return Step(UNTIL, thing, count, "ge")


def cta(*programs, index=CTA):
    """A cluster of one CTA, with a program for each of its warps."""
    return {Warp(index, number): tuple(program) for number, program in enumerate(programs)}


def cluster(*ctas):
    return {warp: program for one in ctas for warp, program in one.items()}


def alone(*programs):
    """One CTA."""
    return Skeleton([cta(*programs)])


def ring(uses, stages=2, readers=2, *, counted=None, first_wait=1, release=True, mid=()):
    """A producer that fills slots by copies, and readers that give them back.

    counted: how many readers an empty slot takes. first_wait: the parity that the producer awaits first. release:
    whether the last reader gives slots back. mid: steps of the readers in every use.
    """
    full, empty = [mbarrier(i) for i in range(stages)], [mbarrier(stages + i) for i in range(stages)]
    setup = [*(init(x, 1) for x in full), *(init(x, counted or readers) for x in empty)]
    producer, reading = [*setup, *meet(0)], [[*meet(0)] for _ in range(readers)]
    for use in range(uses):
        slot, phase = use % stages, use // stages & 1
        producer += [wait(empty[slot], phase ^ first_wait), arrive(full[slot], 96), copy(full[slot], 64)]
        producer += [copy(full[slot], 32)]
        for number, reader in enumerate(reading):
            reader += [wait(full[slot], phase), *mid]
            if release or number < readers - 1:
                reader.append(arrive(empty[slot]))
    return [producer, *reading]
