"""Which machinery computes attention: the kernels, the kernels in simulation, or the reference in PyTorch."""

from __future__ import annotations

import functools
import os
import threading
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .kinds import is_int

__all__ = ["BackendRequest", "backend", "current", "option_of", "resolve"]

ENVIRONMENT = "CUTE_ATTN_BACKEND"
# name -> the options that `backend(name, **options)` takes
OPTIONS: dict[str, tuple[str, ...]] = {"reference": (), "sim": ("mode", "seed", "softmax"), "sm90": ("softmax",)}
# option -> the values it takes; `seed` takes any int >= 0
VALUES: dict[str, tuple[str, ...]] = {"mode": ("eager", "late", "random", "starve"), "softmax": ("stale", "exact")}
AUTO = "auto"  # nothing was asked for: the device decides


@dataclass(frozen=True)
class BackendRequest:
    """What was asked for: a name, `auto` if nothing was, and the options given with it.

    text: all of it as `NAME[:option=value,...]`, the form in which it travels with a call.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        options = ",".join(f"{option}={value}" for option, value in sorted(self.options.items()))
        object.__setattr__(self, "text", f"{self.name}:{options}" if options else self.name)

    @classmethod
    def parse(cls, text: str) -> BackendRequest:
        """The request that has this text."""
        name, _, options = text.partition(":")
        pairs = (option.split("=") for option in options.split(",") if option)
        return cls(name, {option: int(value) if option == "seed" else value for option, value in pairs})


_request: ContextVar[BackendRequest | None] = ContextVar("cute_attn_backend", default=None)
# What was asked for last, in any thread. torch.compile cannot read context variables, but it reads plain globals and
# guards on them, so that a compiled function is compiled again, not stale, when the backend changes. Autograd's own
# threads, on which a GPU's backward runs, have no context of ours either.
_asked_last: str | None = None


class backend:
    """`with cute_attn.backend(name, **options):` asks for a backend by name.

    Args:
        name: "sm90" (kernels, on a Hopper GPU), "sim" (the same kernels, interpreted on the CPU) or "reference"
            (blocked PyTorch, on any device).
        options: for "sim", `mode` ("eager", "late", "random" or "starve") and `seed` (an int >= 0); for "sim" and
            "sm90", `softmax`: "stale" (the default) keeps a row maximum until sums say that it must move, "exact"
            computes it in every tile. Both are exact attention.

    Holds for the current thread or task, in compiled functions and on autograd's threads for the process; enter it
    outside of a function that `torch.compile` compiles. A backward uses the backend and the options that its forward
    used, wherever it runs. The environment variable CUTE_ATTN_BACKEND asks for a backend where no `with` does.

    Raises ValueError for an unknown name or value of an option, TypeError for an option that the backend does not take
    and for what is no name or number at all.
    """

    def __init__(self, name: str, **options: object) -> None:
        _check_name("backend", name)
        for option in options:
            if option not in OPTIONS[name]:
                allowed = ", ".join(OPTIONS[name]) or "no options"
                raise TypeError(f"backend {name!r} got an unknown option {option!r}; it takes {allowed}")
            _check_option(option, options[option])
        self._wanted = BackendRequest(name, options)
        self._entered: list[tuple[Token[BackendRequest | None], str | None]] = []

    def __enter__(self) -> BackendRequest:
        global _asked_last
        self._entered.append((_request.set(self._wanted), _asked_last))
        _asked_last = self._wanted.text
        return self._wanted

    def __exit__(self, *error: object) -> None:
        global _asked_last
        token, _asked_last = self._entered.pop()
        _request.reset(token)


def current() -> BackendRequest:
    """What is asked for here: by the innermost `with backend(...)`, else by CUTE_ATTN_BACKEND, else `auto`."""
    return _request.get() or BackendRequest(_name_of_environment())


def resolve(device: torch.device) -> str:
    """The backend that serves tensors on `device` now, with its options: the text of a BackendRequest.

    Raises NotImplementedError, saying which backend could, where the one asked for cannot serve them.
    """
    return (_served_by if torch.compiler.is_compiling() else _known_served_by)(_asked_here(), device)


def _served_by(asked: str, device: torch.device) -> str:
    name = asked.partition(":")[0]
    if name == "reference" or (name == AUTO and device.type == "cpu"):
        return "reference"
    if (name == "sim" and device.type == "cpu") or (name == "sm90" and device.type == "cuda"):
        return asked
    if name == AUTO and device.type == "cuda":
        return "sm90"
    served = "CPU tensors" if name == "sim" else "CUDA tensors on a Hopper GPU"
    raise NotImplementedError(
        f"backend {'sim' if name == 'sim' else 'sm90'!r} serves {served}, these are on {device}; "
        "with cute_attn.backend('reference') they run in plain PyTorch"
    )


_known_served_by = functools.lru_cache(_served_by)  # dynamo would warn of it


def option_of(text: str, option: str) -> str | None:
    """What a text of `resolve` asks for an option; None where it leaves it open."""
    for pair in text.partition(":")[2].split(","):
        name, _, value = pair.partition("=")
        if name == option:
            return value
    return None


def _asked_here() -> str:
    if not torch.compiler.is_compiling():
        request = _request.get()
        if request is not None:
            return request.text
        if not _is_autograds_thread():
            return _name_of_environment()
    return _asked_last or _name_of_environment()


def _is_autograds_thread() -> bool:
    """Whether this is a thread of autograd's own, on which a backward may compute a forward again."""
    if torch._C._current_graph_task_id() == -1:
        return False
    return isinstance(threading.current_thread(), threading._DummyThread)  # Python did not start it


def _name_of_environment() -> str:
    name = os.environ.get(ENVIRONMENT)
    if not name:
        return AUTO
    _check_name(ENVIRONMENT, name)
    return name


def _check_option(option: str, value: object) -> None:
    if option == "seed":
        if not is_int(value, np.integer):
            raise TypeError(f"seed must be an int >= 0, got {value!r}")
        if value < 0:
            raise ValueError(f"seed must be >= 0, got {value}")
    elif not isinstance(value, str) or value not in VALUES[option]:
        raise ValueError(f"{option} must be {' or '.join(map(repr, VALUES[option]))}, got {value!r}")


def _check_name(where: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{where} must be named by a string, got {name!r} of type {type(name).__name__}")
    if name not in OPTIONS:
        raise ValueError(f"{where}: unknown backend {name!r}; allowed: {', '.join(map(repr, OPTIONS))}")
