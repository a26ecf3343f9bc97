"""What host code hears of the GPU within `simulated`, and memory as a GPU would give it."""

import pytest
import torch

from cute_attn import sim
from cute_attn.errors import Unavailable
from cute_attn.sim.host import from_disk
from cute_attn.sim.host.fresh import watching


def test_pytorch_and_the_dsl_answer_as_an_h100_and_afterwards_as_before():
    from cutlass import utils
    from cutlass.cute import runtime

    names = ("get_device_capability", "get_device_properties", "get_device_name", "device")
    before = [vars(torch.cuda)[name] for name in names]
    methods, load_module = dict(vars(utils.HardwareInfo)), runtime.load_module
    with sim.simulated():
        assert torch.cuda.get_device_capability() == torch.cuda.get_device_capability(torch.device("cuda")) == (9, 0)
        assert torch.cuda.get_device_properties(0).multi_processor_count == 132
        assert "H100" in torch.cuda.get_device_name()
        with torch.cuda.device(torch.empty(1).device):  # of a tensor that says is_cuda
            pass
        info = utils.HardwareInfo()
        assert info.get_device_multiprocessor_count() == 132
        assert [info.get_max_active_clusters(n) for n in (1, 2, 4)] == [132, 66, 33]
        assert info.get_l2_cache_size_in_bytes() == 50 * 2**20
        with pytest.raises(ValueError, match="cluster_size is 17"):
            info.get_max_active_clusters(17)
    assert [vars(torch.cuda)[name] for name in names] == before
    assert vars(utils.HardwareInfo) == methods
    assert runtime.load_module is load_module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64])
def test_new_memory_is_aligned_as_on_a_gpu(dtype):
    with sim.simulated():
        source = torch.empty(3, 5, 7, dtype=dtype)
        made = [
            source,
            torch.empty_like(source),
            source.new_empty(100),
            torch.empty_strided((3, 4), (5, 1), dtype=dtype),
        ]
        made += [torch.empty(n, dtype=dtype) for n in range(1, 20)]
    assert all(tensor.data_ptr() % 512 == 0 for tensor in made)
    assert [(t.dtype, t.is_contiguous()) for t in made[:3]] == [(dtype, True)] * 3
    assert (made[3].shape, made[3].stride()) == ((3, 4), (5, 1))
    assert source.shape == (3, 5, 7)


def test_aligned_memory_is_watched_and_forgotten_once_it_is_written():
    with sim.simulated():
        memory = watching.get()
        tensors = [torch.empty(100) for _ in range(8)]
        assert all(memory.shadow(t.data_ptr(), 400).all() for t in tensors)
        for tensor in tensors:
            tensor[:50] = 0
        assert all(memory.shadow(t.data_ptr(), 400).sum() == 200 for t in tensors)
        for tensor in tensors:
            tensor.fill_(1)
        assert not memory._shadows
        assert torch.empty(4).resize_(1000).fill_(2).sum() == 2000


def test_empty_tensors_and_those_elsewhere_stay_as_they_are():
    with sim.simulated():
        assert torch.empty(0).numel() == 0
        assert torch.empty(4, device="meta").is_meta


def test_a_kernel_from_a_cache_on_disk_says_how_to_go_without_it():
    """Outside of `simulated` it is what it was."""
    module = from_disk.guarded(lambda path, **_: {"kernel": lambda x: x + 1})("k.o", enable_tvm_ffi=True)
    assert module["kernel"](1) == 2
    with sim.simulated(), pytest.raises(Unavailable, match=r"k\.o, which has no PTX .* QUACK_CACHE_ENABLED=0"):
        module["kernel"](1)
