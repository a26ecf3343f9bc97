"""A GPU that takes the time it is told to, on a clock that only its work moves, and a compiler that makes nothing."""

import contextlib

from autotune.measure import Lost
from autotune.profile import Profile
from cute_attn.jit.parallel import Outcome
from cute_attn.predict.kernel import Code, Loop, Step


class FakeGpu:
    """times: seconds of each tile, else `usual`. A tile in `broken` cannot run, one in `hanging` never ends."""

    gpu, sms = "Fake GPU", 100
    metadata = {"driver": "1.0"}  # noqa: RUF012

    def __init__(self, times=None, usual=100e-6, broken=(), hanging=()):
        self.times, self.usual, self.broken, self.hanging = times or {}, usual, broken, hanging
        self.clock, self.calls, self.locked = 0.0, [], 0

    @contextlib.contextmanager
    def lock(self):
        self.locked += 1
        yield
        self.locked -= 1

    def prepare(self, problem, tile):
        assert self.locked == 1, "measured without the lock"
        if tile in self.broken:
            raise RuntimeError("launch failed")
        return tile

    def seconds(self, run):
        assert self.locked == 1, "measured without the lock"
        if run in self.hanging:
            raise Lost("it hangs")
        value = self.times.get(run, self.usual)
        value = value() if callable(value) else value
        self.calls.append(run)
        self.clock += 1.0
        return value

    def now(self):
        return self.clock


def loop(tensor, slots):
    """One pass: products, and under them the slots of a warp."""
    return Loop((Step("products", (tensor,)), Step("run", (slots, 0, 0, 0, 0)), Step("wait", (0,))), tensor, 0)


def profile(spec):
    """A loop without anything to play, so that all of its time is that of what it loads: predicted at once."""
    return Profile(168, 0, (), Code((Loop((Step("send"),), spec.tile.m * spec.tile.n // 16, 0),)))


class FakeCompiler:
    """Compiles by `profile`, which may raise; remembers the order."""

    def __init__(self, profile=profile, clock=None):
        self.profile, self.clock, self.specs = profile, clock, []

    def __call__(self, specs, workers, until):
        for spec in specs:
            if until():
                return
            self.specs.append(spec)
            if self.clock is not None:
                self.clock.clock += 10.0
            try:
                yield Outcome(spec, self.profile(spec), "", 10.0)
            except ValueError as error:
                yield Outcome(spec, None, f"ValueError: {error}", 10.0)
