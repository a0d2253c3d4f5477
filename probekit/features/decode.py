"""Batches of decoded, preprocessed and hashed images, made in this process or prefetched by worker processes."""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from igpt_model.arguments import plain_array
from igpt_model.devices import is_plain
from probekit.datasets.images import hash_image
from probekit.runtime.errors import UserError

AT_ONCE = 8
"""Number of full-size decoded images that a process keeps in memory; one photograph can take 50 MB."""


@dataclass(frozen=True)
class Batch:
    """One block of a split: images uint8 (B, H, W, C), row_ids int64 (B,), image_hashes uint64 (B,)."""

    split: str
    block: int
    images: np.ndarray
    row_ids: np.ndarray
    image_hashes: np.ndarray


class _Batches(Dataset[Any]):
    """Item i is the batch of the i-th row range; a `UserError` is returned so that it keeps its type."""

    def __init__(self, parts: Mapping[str, Any], prepare: Callable, ranges: Sequence[tuple[str, int, slice]]):
        self.parts, self.prepare, self.ranges = parts, prepare, ranges

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | UserError:
        split, _, rows = self.ranges[index]
        count = rows.stop - rows.start
        prepared: np.ndarray | None = None
        hashes = np.empty(count, dtype=np.uint64)
        for first in range(0, count, AT_ONCE):
            last = min(first + AT_ONCE, count)
            try:
                images = self.parts[split].images(rows.start + first, rows.start + last)
                made = [_array(self.prepare(image)) for image in images]
            except UserError as error:
                return error
            if prepared is None:
                prepared = np.empty((count, *made[0].shape), made[0].dtype)
            for place, (image, ready) in enumerate(zip(images, made, strict=True), start=first):
                if ready.shape != prepared.shape[1:]:
                    return UserError(
                        f"prepare returned the shapes {prepared.shape[1:]} and {ready.shape}; return a single size."
                    )
                prepared[place] = ready
                hashes[place] = hash_image(image)
        # tensors travel between processes through shared memory, arrays through a pipe
        return torch.from_numpy(prepared), torch.from_numpy(hashes.view(np.int64))


def _array(prepared: Any) -> np.ndarray:
    """A prepared image as an array of numbers; a tensor's precision is kept, because the encoder may depend on it."""
    if is_plain(prepared) and prepared.dtype in (torch.float16, torch.float64):
        prepared = prepared.detach().cpu().resolve_neg().numpy()
    return plain_array(prepared, "a prepared image")


def prepared_batches(
    parts: Mapping[str, Any], prepare: Callable, ranges: Sequence[tuple[str, int, slice]], workers: int
) -> Generator[Batch]:
    """The batches of `ranges` in order; each worker prefetches at most two batches.

    Workers are forked by this call, not by the first `next`, so that the caller may start threads afterwards.
    """
    batches = _Batches(parts, prepare, ranges)
    made: Iterator[Any] = (batches[index] for index in range(len(batches)))
    if workers > 0:
        loader = DataLoader(
            batches, batch_size=None, num_workers=min(workers, len(ranges)), prefetch_factor=2,
            # the default of Python 3.14 (forkserver) would import the caller's script again
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )  # fmt: skip
        made = iter(loader)
    return _batches(made, parts, ranges)


def _batches(
    made: Iterator[Any], parts: Mapping[str, Any], ranges: Sequence[tuple[str, int, slice]]
) -> Generator[Batch]:
    for (split, block, rows), item in zip(ranges, made, strict=True):
        if isinstance(item, UserError):
            raise item
        images, hashes = item
        yield Batch(split, block, images.numpy(), parts[split].row_ids[rows], hashes.numpy().view(np.uint64))
