"""Tensors that say they are on a GPU and lie on the CPU, and who counts what would wait for that GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
GPU = torch.device("meta")  # PyTorch raises for "cuda" where there is none, before anybody is asked
# Operators whose results have a size, or are a number, that the host has to read.
WAITING = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.item),
}


class OnGpu(torch.Tensor):
    """A tensor on a pretended GPU; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=GPU, storage_offset=held.storage_offset()
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a GPU that nobody pretends")


class PretendedGpu(TorchDispatchMode):
    """Within it operators run on such tensors; `read` lists those that would wait for the GPU, by name."""

    def __init__(self):
        super().__init__()
        self.read = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = []
        plain_args, plain = tree_map(lambda x: given.append(x) or x.held if isinstance(x, OnGpu) else x, (args, kwargs))
        device = plain.get("device")
        to_gpu = device is not None and torch.device(device).type == GPU.type
        if to_gpu:
            plain["device"] = torch.device("cpu")
        copies = function.overloadpacket in (aten._to_copy, aten.copy_)
        if given and self._waits(function.overloadpacket, args, kwargs, plain):
            self.read.append(str(function))
        if copies and to_gpu and not given:
            return OnGpu(function(*plain_args, **plain).clone())
        result = function(*plain_args, **plain)
        if given and not to_gpu and device is not None:  # a copy to the host
            return result
        if not (given or to_gpu):
            return result
        if result is plain_args[0] if plain_args else False:
            return args[0]  # in place
        return tree_map(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) else x, result)

    @staticmethod
    def _waits(packet, args, kwargs, plain):
        if packet is aten._to_copy:
            return plain.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if packet is aten.copy_:
            return not isinstance(args[0], OnGpu)
        if packet in (aten.index, aten.index_put, aten.index_put_):
            return any(x is not None and x.dtype == torch.bool for x in args[1])
        if packet is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        return packet in WAITING


def on_gpu(x):
    """The tensor on the pretended GPU."""
    return OnGpu(x.clone())
