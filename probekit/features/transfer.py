"""Features from where they are computed to the host, beside the next batch's computation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class Transfer:
    """The features of one batch on their way to the host.

    Made by the thread that computes; `arrays` is called by the one that writes. From a GPU the copies run in a stream
    of their own, which waits for this batch only: in the computing stream they would queue up behind the batches that
    follow. They land in pinned memory, so that they and the computation really overlap.

    Parameters
    ----------
    features : tensors or arrays, one a layer
    """

    def __init__(self, features: Sequence[Any]):
        self._features = [torch.as_tensor(feature) for feature in features]
        self._computed: torch.cuda.Event | None = None
        if self._features and self._features[0].device.type == "cuda":
            self._computed = torch.cuda.current_stream(self._features[0].device).record_event()

    def arrays(self) -> list[np.ndarray]:
        """The features as float32 arrays; on a GPU's features the caller waits until they are there."""
        if self._computed is None:
            return [feature.to("cpu", torch.float32).numpy() for feature in self._features]
        stream = torch.cuda.Stream(self._features[0].device)  # taken from a pool: no new one for each batch
        stream.wait_event(self._computed)
        with torch.cuda.stream(stream):
            landed = [
                torch.empty(feature.shape, dtype=torch.float32, pin_memory=True).copy_(feature, non_blocking=True)
                for feature in self._features
            ]
        stream.synchronize()
        # only now may their memory on the device be used again
        self._features = []
        return [tensor.numpy() for tensor in landed]
