"""What is read off an entry."""

import struct

import pytest

from cute_attn.jit.entry import embedded_cubin


def elf(machine, size):
    """A header that says where the sections of a file of `size` bytes end."""
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<QQ", header, 32, 64, size - 64)
    struct.pack_into("<4H", header, 54, 56, 0, 64, 1)
    return bytes(header).ljust(size, b"x")


def test_the_code_for_the_gpu_is_found_in_that_of_the_host():
    cubin = elf(190, 200)
    assert embedded_cubin(elf(62, 128) + cubin + b"more") == cubin


@pytest.mark.parametrize("host", [elf(62, 128), elf(62, 128) + elf(62, 128)], ids=["none", "of another machine"])
def test_a_shared_object_without_such_code_is_refused(host):
    with pytest.raises(ValueError, match="no code for a GPU"):
        embedded_cubin(host)
