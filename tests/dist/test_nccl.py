"""The movers under NCCL, as far as one GPU can tell: a group of one rank."""

import pytest
import torch
import torch.distributed as dist
from low_precision import LowPrecision, check_low_precision, on_kernels
from problems import NAMES, Problem, check, config, documents, on_ranks

import cute_attn

pytestmark = pytest.mark.gpu


@pytest.fixture
def nccl():
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
def test_tensors_on_a_gpu_give_what_they_give_on_the_cpu(nccl, mover):
    problem = Problem(documents(13, 71, 9, 1, 22), sinks=2)
    on_gpu = Problem(problem.mask, sinks=2)
    on_gpu.inputs, on_gpu.gradients = ([x.cuda() for x in tensors] for tensors in (problem.inputs, problem.gradients))
    with cute_attn.backend("reference"):
        got = on_ranks(on_gpu, config(mover))
    check(mover, {name: got[name].cpu() for name in NAMES}, problem.wanted)


@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
def test_the_kernels_are_as_precise_as_plain_attention(nccl, mover):
    problem = LowPrecision(documents(37, 141, 22), 4, 2, head_dim=64, head_dim_v=64, sinks=2)
    problem.inputs, problem.gradients = ([x.cuda() for x in tensors] for tensors in (problem.inputs, problem.gradients))
    got = on_kernels(0, problem, config(mover), {"return_max_logits": True}, "sm90")
    check_low_precision(problem, {name: got[name].cpu() for name in NAMES})
