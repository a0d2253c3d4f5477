"""Several pieces of work at once on one GPU, each on a CUDA stream of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from igpt_model.devices import find_device

T = TypeVar("T")


def on_streams(work: Sequence[Callable[[], T]], device: str | torch.device, at_once: int = 8) -> Iterator[T]:
    """Results of calls, in their order.

    On a GPU `at_once` calls run together, each in a thread with a stream of its own: small kernels of one fill the gaps
    of another. A stream begins after what the caller has queued, and is finished when its result is given. Elsewhere
    the calls run one after another.
    """
    where = find_device(device)
    if where.type != "cuda" or min(len(work), at_once) < 2:
        yield from (call() for call in work)
        return
    queued = torch.cuda.current_stream(where)

    def run(call: Callable[[], T]) -> T:
        stream = torch.cuda.Stream(where)
        stream.wait_stream(queued)
        with torch.cuda.stream(stream):
            result = call()
        stream.synchronize()
        return result

    with ThreadPoolExecutor(at_once) as threads:
        yield from threads.map(run, work)
