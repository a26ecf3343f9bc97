"""Which backend serves a call, how another is asked for, and that nothing falls back silently."""

import threading

import pytest
import torch

import cute_attn
from cute_attn import flex_flash_attn_func
from cute_attn.backend import current, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _no_backend_in_the_environment(monkeypatch):
    monkeypatch.delenv("CUTE_ATTN_BACKEND", raising=False)


def test_cpu_tensors_use_the_reference():
    assert current().name == "auto"
    assert resolve(CPU) == "reference"


def test_cuda_tensors_use_the_kernels():
    assert resolve(CUDA) == "sm90"


def test_other_devices_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"Hopper GPU, these are on meta.*backend\('reference'\)"):
        resolve(torch.device("meta"))


def test_the_reference_serves_any_device_when_asked_for():
    with cute_attn.backend("reference"):
        assert resolve(CPU) == resolve(CUDA) == "reference"


def test_kernels_do_not_serve_cpu_tensors():
    with cute_attn.backend("sm90"), pytest.raises(NotImplementedError, match="these are on cpu"):
        resolve(CPU)


def test_the_simulator_runs_cpu_tensors_and_keeps_its_options():
    with cute_attn.backend("sim", mode="random", seed=3) as request:
        assert (current(), request.options) == (request, {"mode": "random", "seed": 3})
        assert resolve(CPU) == "sim:mode=random,seed=3"
        with pytest.raises(NotImplementedError, match=r"'sim' serves CPU tensors, these are on cuda"):
            resolve(CUDA)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="unknown backend 'gpu'; allowed: 'reference', 'sim', 'sm90'"):
        cute_attn.backend("gpu")
    with pytest.raises(TypeError, match="backend 'reference' got an unknown option 'seed'; it takes no options"):
        cute_attn.backend("reference", seed=1)
    with pytest.raises(ValueError, match="softmax must be 'stale' or 'exact', got 'online'"):
        cute_attn.backend("sm90", softmax="online")
    with pytest.raises(TypeError, match="'sim' got an unknown option 'speed'; it takes mode, seed"):
        cute_attn.backend("sim", speed=1)


def test_the_environment_asks_where_no_with_does(monkeypatch):
    monkeypatch.setenv("CUTE_ATTN_BACKEND", "sim")
    assert current().name == "sim"
    with cute_attn.backend("reference"):
        assert resolve(CPU) == "reference"
    monkeypatch.setenv("CUTE_ATTN_BACKEND", "fast")
    with pytest.raises(ValueError, match="CUTE_ATTN_BACKEND: unknown backend 'fast'; allowed"):
        resolve(CPU)


def test_requests_nest_and_end_with_an_error():
    with cute_attn.backend("sm90"):
        with pytest.raises(KeyError), cute_attn.backend("reference"):
            raise KeyError
        assert current().name == "sm90"
    assert current().name == "auto"


def test_a_request_holds_for_its_own_thread():
    seen = []
    with cute_attn.backend("sim"):
        thread = threading.Thread(target=lambda: seen.append(current().name))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_the_backward_uses_the_backend_of_the_forward():
    q = torch.randn(4, 1, 8, requires_grad=True)
    with cute_attn.backend("reference"):
        out, _ = flex_flash_attn_func(q, q, q, [[0, 4]], [[0, 4]])
    with cute_attn.backend("sim"):
        out.sum().backward()
    assert q.grad.isfinite().all()


def test_a_compiled_function_follows_the_backend():
    @torch.compile(fullgraph=True, backend="eager")
    def compiled(q):
        return flex_flash_attn_func(q, q, q, [[0, 4]], [[0, 4]])[0]

    q = torch.randn(4, 1, 8)
    plain = compiled(q)
    with cute_attn.backend("reference"):
        assert torch.equal(compiled(q), plain)
    with cute_attn.backend("sim"), pytest.raises(Exception, match="'sim' has kernels for bfloat16 and float16"):
        compiled(q)
    assert torch.equal(compiled(q), plain)
