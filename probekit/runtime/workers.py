"""Worker processes that share a sweep, because small fits use only one core.

Each runs the caller's call again with workers=1 in a new process; the journal assigns every key to one process.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import Thread
from typing import Any

import torch

from igpt_model.ranges import WORKERS, check_range
from probekit.runtime.errors import UserError


@contextmanager
def worker_processes(workers: int, work: Callable[..., Any], *args: Any, **settings: Any) -> Iterator[None]:
    """Run `work(*args, **settings)` in `workers` - 1 other processes during the body, dividing the cores among them.

    The body must do the same work with the same journal, so that a worker that dies costs time but no results.

    Parameters
    ----------
    workers : number of processes including this one; 1 starts none
    work : an importable function

    Raises
    ------
    UserError
        `workers` is below 1 or above the largest supported number.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; expected at least 1.")
    check_range("workers", workers, WORKERS)
    if workers == 1:
        yield
        return
    threads = torch.get_num_threads()
    each = max(threads // workers, 1)
    # start a new interpreter, because a fork would inherit torch's thread pools and HDF5's locks
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=_help, args=(each, work, args, settings), daemon=True) for _ in range(workers - 1)
    ]
    inherited = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(each)
    # workers inherit the blocked signal, so that only the caller interrupts them
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for helper in helpers:
            helper.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if inherited is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = inherited
    torch.set_num_threads(each)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:
            helper.terminate()
            helper.join()


def _end_with_the_caller() -> None:
    """End this worker when its caller has been killed."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _help(threads: int, work: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Run without output or errors, because the caller's process meets the same errors and reports them."""
    import sys
    import warnings

    Thread(target=_end_with_the_caller, daemon=True).start()
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            work(*args, **settings)
        except Exception:
            sys.exit(1)
