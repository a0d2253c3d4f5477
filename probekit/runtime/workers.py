"""More processes at the same work: small fits leave a processor's other cores idle, and a journal can be shared.

A helper runs the caller's own call again, with one worker, in a new process; the journal hands each key to one of them.
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
    """While the body runs, `workers` - 1 other processes run `work(*args, **settings)`; the cores are shared out.

    The body must do the same work under the same journal: a helper that dies costs time, not results.

    Parameters
    ----------
    workers : processes in all, this one included; 1 starts none
    work : a function that another process can import

    Raises
    ------
    UserError
        `workers` is below 1, or above what a machine runs.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}, but at least 1 is needed.")
    check_range("workers", workers, WORKERS)
    if workers == 1:
        yield
        return
    threads = torch.get_num_threads()
    each = max(threads // workers, 1)
    # a fresh interpreter: a fork would inherit the thread pools of torch and HDF5's locks
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=_help, args=(each, work, args, settings), daemon=True) for _ in range(workers - 1)
    ]
    inherited = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(each)
    # helpers inherit the blocked signal: none is interrupted, above all not during its imports; the caller ends them
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
    """A caller killed outright cannot end its helpers: they see to it themselves."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _help(threads: int, work: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Work silently: what goes wrong here goes wrong in the caller's process too, which reports it."""
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
