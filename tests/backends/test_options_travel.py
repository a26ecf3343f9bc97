"""What `backend(...)` asks for travels with the call: into compiled graphs, the backward, and other threads."""

import _thread
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import cute_attn
from cute_attn import flex_flash_attn_func, sim
from cute_attn.backends.find import find
from cute_attn.launch import run as launch
from cute_attn.mask import causal

ROWS = 12
RANGES = torch.tensor([[0, ROWS]])
MASKS = {"intervals": (causal(ROWS),), "slices": (RANGES, RANGES)}


@pytest.fixture
def launched(monkeypatch):
    """Lists (softmax or None, mode, seed) of launches, which compute nothing."""
    seen = []
    monkeypatch.setattr(launch, "kernel", lambda spec, backend: SimpleNamespace(function=spec, ptx=""))

    def run(spec, *arguments, mode, seed, **others):
        seen.append((getattr(spec, "softmax", None), mode, seed))

    monkeypatch.setattr(sim, "run", run)
    return seen


def tokens():
    return torch.randn(ROWS, 1, 64).half().requires_grad_()


def elsewhere(function):
    """Calls it on a thread that Python's threading does not know, as autograd does for a GPU."""
    ended = threading.Event()

    def call():
        try:
            function()
        finally:
            ended.set()

    _thread.start_new_thread(call, ())
    assert ended.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_forward_and_backward_have_the_options_of_the_call(mask, compiler, launched):
    def attend(x):
        return flex_flash_attn_func(x, x, x, *MASKS[mask])[0]

    if compiler:
        torch._dynamo.reset()
        attend = torch.compile(attend, fullgraph=True, backend=compiler)
    with cute_attn.backend("sim", softmax="exact", mode="late"):
        exact = attend(tokens())
    with cute_attn.backend("sim", mode="random", seed=7):
        stale = attend(tokens())
    elsewhere(exact.sum().backward)
    elsewhere(stale.sum().backward)
    assert launched == [("exact", "late", 0), ("stale", "random", 7), (None, "late", 0), (None, "random", 7)]


@pytest.mark.parametrize("mask", MASKS)
def test_what_a_backward_computes_again_on_its_thread_has_them(mask, launched):
    with cute_attn.backend("sim", softmax="exact", seed=3):
        out = checkpoint(lambda x: flex_flash_attn_func(x, x, x, *MASKS[mask])[0], tokens(), use_reentrant=False)
        elsewhere(out.sum().backward)
    assert launched == [("exact", "eager", 3), ("exact", "eager", 3), (None, "eager", 3)]


def test_what_a_backward_computes_again_on_a_thread_of_ours_has_the_request_of_that_thread(launched):
    """Here none, as its forward had: another thread's request is nobody else's."""
    x = torch.randn(ROWS, 1, 8, requires_grad=True)

    def step():
        checkpoint(
            lambda x: flex_flash_attn_func(x, x, x, *MASKS["slices"])[0], x, use_reentrant=False
        ).sum().backward()

    with cute_attn.backend("sim"):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert x.grad.isfinite().all()
    assert launched == []


def test_a_backend_is_one_object_for_what_was_asked():
    with (
        cute_attn.backend("sim", seed=3, softmax="exact") as first,
        cute_attn.backend("sim", softmax="exact", seed=3) as second,
    ):
        assert first.text == second.text == "sim:seed=3,softmax=exact"
    found = find(first.text)
    assert (found.name, found.softmax, found.mode, found.seed) == ("sim", "exact", "eager", 3)
    assert find(second.text) is found
