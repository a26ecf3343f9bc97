"""Runs a function on several ranks: forked processes joined by gloo, fresh for every call, with a deadline."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
import torch.fx.experimental.symbolic_shapes  # backward(gradient) imports it: once here, not in every rank

DEADLINE = 60.0  # seconds for one call
GRACE = 5.0  # seconds the other ranks get once one has failed

_fork = multiprocessing.get_context("fork")


def run_ranks(world, function, *arguments, deadline=DEADLINE, timeout=None):
    """`[function(rank, *arguments) for rank in range(world)]`, each in its own process of one gloo world.

    What the function returns must pickle. AssertionError if a rank raises, dies, or has not returned in time.
    timeout: seconds after which the world's collectives give up, the deadline if None.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes, ends = [], []
        for rank in range(world):
            here, there = _fork.Pipe(duplex=False)
            process = _fork.Process(
                target=_main, args=(rank, world, folder, there, timeout or deadline, function, arguments), daemon=True
            )
            process.start()
            there.close()
            processes.append(process)
            ends.append(here)
        try:
            results, errors = _collect(ends, time.monotonic() + deadline)
        finally:
            for process in processes:
                process.kill()
                process.join()
    missing = [rank for rank in range(world) if rank not in results and rank not in errors]
    assert not errors, "\n".join(f"rank {rank} of {world} raised\n{text}" for rank, text in sorted(errors.items()))
    assert not missing, f"ranks {missing} of {world} have not returned within {deadline} s"
    return [results[rank] for rank in range(world)]


def join_world(rank, world, folder, timeout):
    """Makes the default process group; `folder` must be a new one each time."""
    store = dist.FileStore(os.path.join(folder, "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout))


def error_of(function, *arguments, **keywords):
    """Type name and message of what the function raises, or None: what ranks return to be compared."""
    try:
        function(*arguments, **keywords)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def _main(rank, world, folder, end, timeout, function, arguments):
    torch.set_num_threads(1)
    try:
        join_world(rank, world, folder, timeout)
        end.send_bytes(pickle.dumps((True, function(rank, *arguments))))
        dist.barrier()  # nobody leaves while others still talk
    except BaseException:
        end.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        end.close()
        os._exit(0)


def _collect(ends, until):
    """Results and tracebacks by rank, as far as they came in time."""
    results, errors = {}, {}
    waiting = dict(zip(ends, range(len(ends)), strict=True))
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
        if not ready:
            break
        for end in ready:
            rank = waiting.pop(end)
            try:
                good, value = pickle.loads(end.recv_bytes())
            except EOFError:
                good, value = False, "the process died"
            (results if good else errors)[rank] = value
        if errors:
            until = min(until, time.monotonic() + GRACE)
    return results, errors
