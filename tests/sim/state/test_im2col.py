"""Copies through tensor maps in im2col mode: which pixels come, in which order, and what is refused."""

import contextlib
import itertools
import struct

import numpy as np
import pytest
import torch
from kernels.windows import window_map
from snippet import run, tensor_map

from cute_attn import sim
from cute_attn.sim.errors import (
    CopyInFlight,
    OutOfBounds,
    SimError,
    UnsupportedDescriptor,
    UnsupportedInstruction,
)

TILE = tensor_map(np.zeros((2, 5, 7, 16), np.float32), (1, 1, 4, 8))
RANDOM = np.random.default_rng(16)
# Images [n, (d,) (h,) w, c]; the corners and steps of the bounding box, for w, h, d.
CASES = {
    3: ((3, 9, 16), ((-2,), (-1,)), (2,)),
    4: ((2, 5, 7, 16), ((-1, -2), (-1, 1)), (1, 2)),
    5: ((2, 4, 6, 7, 16), ((-1, 0, -3), (0, -1, 1)), (3, 1, 2)),
}
LOAD = "cp.async.bulk.tensor.{0}d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.tensor.{0}d.global.shared::cta.im2col_no_offs.bulk_group"


def im2col_map(array, pixels, channels, corners, steps):
    """The 128 bytes of a map in im2col mode of images whose last axis is the channels."""
    words = list(struct.unpack("<16I", tensor_map(array, (1,) * array.ndim)[:64]))
    bits = {3: 16, 4: 8, 5: 5}[array.ndim]
    words[2] |= 1
    words[13] = channels - 1 << 24 | sum(step - 1 << 3 * i for i, step in enumerate(steps, 1))
    words[14] = 0
    for half, corner in enumerate(corners):
        words[14] |= sum((x & (1 << bits) - 1) << bits * i for i, x in enumerate(corner)) << 16 * half
    words[15] = pixels - 1
    return struct.pack("<16I", *words) + bytes(64)


def windows(array, corners, steps):
    """Of pixels of the bounding box, w, h, d and n, in order and beyond the last image."""
    *images, _ = array.shape
    ranges = [
        range(lower, size + upper, step)
        for lower, upper, step, size in zip(*corners, steps, images[:0:-1], strict=True)
    ]
    return [pixel[::-1] for pixel in itertools.product(range(images[0] + 20), *ranges[::-1])]


def expected(array, pixels, channels, first, offsets):
    """The rows of channels at these pixels, shifted by the offsets; zero outside of the images."""
    out = np.zeros((len(pixels), channels), array.dtype)
    for row, (*where, image) in zip(out, pixels, strict=True):
        place = (image, *[w + o for w, o in zip(where, offsets, strict=True)][::-1])
        if all(0 <= x < size for x, size in zip(place, array.shape, strict=False)):
            inside = array[place][max(first, 0) : first + channels]
            row[max(-first, 0) :][: inside.size] = inside
    return out


SETUP = """
    mov.u32 %r9, smem; add.u32 %r8, %r9, 1024; setp.ne.u32 %p9, %t, 0; mov.b64 %d1, p1;
    @%p9 bra READY; mbarrier.init.shared.b64 [%r9], 1; fence.mbarrier_init.release.cluster; READY: bar.sync 0;
"""
ROWS = "mov.u32 %r1, %t; C: mad.lo.u32 %r2, %r1, 4, %r8; mad.wide.u32 %o, %r1, 4, %a0; {0} add.u32 %r1, %r1, 32; {1}"
AGAIN = "setp.lt.u32 %p1, %r1, {0}; @%p1 bra C;"


def loaded(array, map_bytes, pixels, channels, at, offsets, mode="eager", *, line=LOAD, waits=True):
    """The pixels that one load brings into shared memory."""
    rank, out = array.ndim, np.zeros((pixels, channels), array.dtype)
    where, off = (", ".join(map(str, x)) for x in (at, offsets))
    wait = "W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], 0; @!%p8 bra W;" if waits else ""
    body = f"""{SETUP} @%p9 bra ISSUED; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {out.nbytes};
    {line.format(rank)} [%r8], [%d1, {{{where}}}], [%r9]{f", {{{off}}}" if offsets else ""};
    ISSUED: {wait}
    {ROWS.format("ld.shared.u32 %r3, [%r2]; st.global.u32 [%o], %r3;", AGAIN.format(out.nbytes // 4))}"""
    run(body, out, map_bytes, array, smem=1024 + out.nbytes, mode=mode)
    return out


@pytest.mark.parametrize("mode", ["eager", "late", "random", "starve"])
@pytest.mark.parametrize("rank", CASES)
def test_pixels_come_in_the_order_of_the_windows(rank, mode):
    shape, corners, steps = CASES[rank]
    array = RANDOM.random(shape).astype(np.float32)
    every = windows(array, corners, steps)
    for start, first, offsets in (
        (0, 0, (0,) * (rank - 2)),
        (3, 8, (2, 1, 3)[: rank - 2]),
        (5, 12, (1, 0, 2)[: rank - 2]),
    ):
        pixels = every[start : start + 32]
        got = loaded(array, im2col_map(array, 32, 8, corners, steps), 32, 8, (first, *pixels[0]), offsets, mode)
        np.testing.assert_array_equal(got, expected(array, pixels, 8, first, offsets))


def test_all_filter_elements_together_are_a_convolution():
    """3x3, padded by one, every second pixel: the scores of torch."""
    images = RANDOM.integers(-3, 4, (2, 6, 8, 8)).astype(np.float32)
    filters = RANDOM.integers(-3, 4, (5, 8, 3, 3)).astype(np.float32)
    corners, steps = ((-1, -1), (-1, -1)), (2, 2)  # padding, and padding less the filter's size but one
    count = 2 * 3 * 4
    total = np.zeros((count, 5), np.float32)
    for r, s in itertools.product(range(3), range(3)):
        got = loaded(images, im2col_map(images, count, 8, corners, steps), count, 8, (0, -1, -1, 0), (s, r))
        total += got @ filters[:, :, r, s].T
    wanted = torch.nn.functional.conv2d(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(filters), None, 2, 1)
    np.testing.assert_array_equal(total, wanted.permute(0, 2, 3, 1).reshape(count, 5).numpy())


def stored(array, map_bytes, source, at, *, line=STORE):
    """Stores rows of channels from shared memory to the pixels from `at` on."""
    body = f"""{SETUP.replace("p1;", "p1;", 1)}
    {ROWS.format("ld.global.u32 %r3, [%o]; st.shared.u32 [%r2], %r3;", AGAIN.format(source.nbytes // 4))}
    fence.proxy.async.shared::cta; bar.sync 0; @%p9 bra END;
    {line.format(array.ndim)} [%d1, {{{", ".join(map(str, at))}}}], [%r8];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
    run(body, source, map_bytes, array, smem=1024 + source.nbytes)


@pytest.mark.parametrize("rank", CASES)
def test_stores_and_reductions_drop_what_lies_outside(rank):
    shape, corners, steps = CASES[rank]
    array = np.zeros(shape, np.float32)
    pixels = windows(array, corners, steps)[2:34]
    source = RANDOM.integers(1, 9, (32, 8)).astype(np.float32)
    wanted = np.zeros(shape, np.float32)
    for row, (*where, image) in zip(source, pixels, strict=True):
        place = (image, *where[::-1])
        if all(0 <= x < size for x, size in zip(place, shape, strict=False)):
            wanted[place][12:] = row[:4]
    map_bytes = im2col_map(array, 32, 8, corners, steps)
    stored(array, map_bytes, source, (12, *pixels[0]))
    np.testing.assert_array_equal(array, wanted)
    stored(
        array, map_bytes, source, (12, *pixels[0]), line=STORE.replace("cp.", "cp.reduce.").replace("cta.", "cta.add.")
    )
    np.testing.assert_array_equal(array, 2 * wanted)


def test_a_load_that_nobody_waits_for_is_found():
    shape, corners, steps = CASES[4]
    array = RANDOM.random(shape).astype(np.float32)
    case = array, im2col_map(array, 32, 8, corners, steps), 32, 8, (0, -1, -2, 0), (0, 0)
    with pytest.raises(CopyInFlight, match=r"32 pixels of 8 channels at \(0, -1, -2, 0\) of a tensor"):
        loaded(*case, "late", waits=False)


def test_pixels_and_channels_make_the_bytes():
    shape, corners, steps = CASES[4]
    array = RANDOM.random(shape).astype(np.float32)
    with pytest.raises(SimError, match="transaction bytes"):
        loaded(array, im2col_map(array, 16, 8, corners, steps), 32, 8, (0, -1, -2, 0), (0, 0))


def test_a_map_of_more_than_there_is_leaves_the_tensor():
    shape, corners, steps = CASES[4]
    array = RANDOM.random(shape).astype(np.float32)
    words = np.frombuffer(im2col_map(array, 32, 8, corners, steps), np.uint32).copy()
    words[11] += 1  # an image more
    with pytest.raises(OutOfBounds):
        loaded(array, words.tobytes(), 32, 8, (0, -1, -2, shape[0]), (2, 2))


def changed(word, bits):
    def change(map_bytes):
        words = np.frombuffer(map_bytes, np.uint32).copy()
        words[word] ^= bits
        return words.tobytes()

    return change


@pytest.mark.parametrize(
    ("change", "at", "said"),
    [
        (lambda m: m, (0, 0, -1, 0), "-1 is no pixel of the bounding box"),  # height goes by two
        (lambda m: m, (0, 6, 0, 0), "6 is no pixel of the bounding box"),
        (lambda m: TILE, (0, 0, 0, 0), "a copy in im2col mode through a tensor map in tile mode"),
        (changed(2, 3 << 4 ^ 1 << 4), (0, 0, 0, 0), "im2col mode of rank 2"),
        (changed(13, 1), (0, 0, 0, 0), "words 7, 13, 14, 15 of the tensor map have unknown bits"),
        (changed(13, 1 << 9), (0, 0, 0, 0), "unknown bits"),
        (changed(15, 1 << 10), (0, 0, 0, 0), "unknown bits"),
    ],
)
def test_what_no_map_says_or_no_window_has_is_refused(change, at, said):
    shape, corners, steps = CASES[4]
    array = RANDOM.random(shape).astype(np.float32)
    with pytest.raises(UnsupportedDescriptor, match=said):
        loaded(array, change(im2col_map(array, 32, 8, corners, steps)), 32, 8, at, (0, 0))


@pytest.mark.parametrize("rank", CASES)
def test_offsets_are_refused_outside_of_what_the_manual_has_for_them(rank):
    """Of 16, 8 or 5 bits, in every place for them; the largest brings what lies so far off: zeros."""
    largest = {3: 65535, 4: 255, 5: 31}[rank]
    shape, corners, steps = CASES[rank]
    array = RANDOM.random(shape).astype(np.float32)
    pixels = windows(array, corners, steps)[:8]
    case = array, im2col_map(array, 8, 8, corners, steps), 8, 8, (0, *pixels[0])
    zeros = (0,) * (rank - 2)
    np.testing.assert_array_equal(loaded(*case, zeros), expected(array, pixels, 8, 0, zeros))
    for axis in range(rank - 2):
        for offset in (largest, -1, largest + 1, 1 << 16, 1 << 32):
            offsets = tuple(offset if i == axis else 0 for i in range(rank - 2))
            if offset == largest:
                assert not loaded(*case, offsets).any()
                continue
            with pytest.raises(UnsupportedDescriptor, match=f"they are 0 to {largest}"):
                loaded(*case, offsets)


def test_offsets_in_registers_are_read_without_a_sign():
    shape, corners, steps = CASES[3]
    array = RANDOM.random(shape).astype(np.float32)
    case = array, im2col_map(array, 8, 8, corners, steps), 8, 8, (0, -2, 0)
    moved = "mov.u16 %h1, 65535; " + LOAD
    assert not loaded(*case, ("%h1",), line=moved).any()
    for register in ("%r1", "%d1", "%p1", "%laneid"):
        with pytest.raises(UnsupportedInstruction, match="offsets that are no numbers of 16 bits"):
            loaded(*case, (register,))


def test_a_tile_through_such_a_map_is_refused():
    shape, corners, steps = CASES[4]
    array = RANDOM.random(shape).astype(np.float32)
    case = array, im2col_map(array, 32, 8, corners, steps), 32, 8, (0, 0, 0, 0), ()
    with pytest.raises(UnsupportedDescriptor, match="a copy in tile mode through a tensor map in im2col mode"):
        loaded(*case, line=LOAD.replace("im2col", "tile"))


@pytest.mark.parametrize(
    "line",
    [
        LOAD.format(4) + " [%r8], [%d1, {0, 0, 0, 0}], [%r9];",
        LOAD.format(4) + " [%r8], [%d1, {0, 0, 0, 0}], [%r9], {0};",
        LOAD.format(4) + " [%r8], [%d1, {0, 0, 0}], [%r9], {0, 0};",
        LOAD.format(2) + " [%r8], [%d1, {0, 0}], [%r9], {};",
        LOAD.format(4).replace("im2col", "im2col_no_offs") + " [%r8], [%d1, {0, 0, 0, 0}], [%r9];",
        LOAD.format(4).replace("im2col", "im2col::w") + " [%r8], [%d1, {0, 0, 0, 0}], [%r9], {0, 0};",
        STORE.format(4).replace("im2col_no_offs", "im2col") + " [%d1, {0, 0, 0, 0}], [%r8];",
    ],
)
def test_other_forms_are_refused(line):
    with pytest.raises(UnsupportedInstruction):
        run(line, np.zeros(16, np.uint64))


@pytest.mark.parametrize("rank", CASES)
def test_maps_are_those_that_the_dsl_makes(rank):
    shape, corners, steps = CASES[rank]
    x, out = torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int64)
    sim.run(window_map(shape, 32, 8, corners, steps), x, out)
    theirs = out.numpy().view(np.uint32).copy()
    theirs[2] &= ~np.uint32(0xFC0000)  # how L2 is to fetch
    ours = np.frombuffer(im2col_map(x.view(torch.uint16).numpy(), 32, 8, corners, steps), np.uint32)
    np.testing.assert_array_equal(theirs, ours[:16])


def test_every_error_is_one_of_the_simulator():
    """Of maps with any bit flipped, none ends in anything else; as it is, the map does what it should."""
    shape, corners, steps = CASES[3]
    array = RANDOM.random(shape).astype(np.float32)
    right, pixels = im2col_map(array, 8, 4, corners, steps), windows(array, corners, steps)[:8]
    case = 8, 4, (0, *pixels[0]), (0,)
    np.testing.assert_array_equal(loaded(array, right, *case), expected(array, pixels, 4, 0, (0,)))
    for bit in range(512):
        with contextlib.suppress(SimError):
            loaded(array, changed(bit // 32, 1 << bit % 32)(right), *case)


@pytest.mark.parametrize("bit", [62, 63])
def test_an_address_that_no_memory_has_is_refused(bit):
    shape, corners, steps = CASES[3]
    array = RANDOM.random(shape).astype(np.float32)
    flipped = changed(1, 1 << bit - 32)(im2col_map(array, 8, 4, corners, steps))
    with pytest.raises(OutOfBounds, match="beyond all memory"):
        loaded(array, flipped, 8, 4, (0, -2, 0), (2,))
