"""Copy features from the device to the host while the next batch is computed."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from igpt_model.arguments import plain_array
from igpt_model.devices import is_plain, send
from probekit.runtime.errors import UserError

HOST = torch.device("cpu")


class Transfer:
    """Transfer of the features of one batch, a tensor or array per layer, to the host.

    Created by the computing thread; the writing thread calls `arrays`. Copies from a GPU run in a separate stream that
    waits only for this batch, because in the computing stream they would queue behind the following batches. They go to
    pinned memory, without which a copy does not overlap with computation.
    """

    def __init__(self, features: Iterable[Any]):
        if isinstance(features, Mapping | str) or not isinstance(features, Iterable):
            kind = type(features).__name__
            raise UserError(f"The encoder returned a {kind}; expected a list with one array or tensor per layer.")
        self._features = [
            one.detach() if is_plain(one) else send(plain_array(one, f"features of layer {index}"), HOST)
            for index, one in enumerate(features)
        ]
        self._computed: torch.cuda.Event | None = None
        if self._features and self._features[0].device.type == "cuda":
            self._computed = torch.cuda.current_stream(self._features[0].device).record_event()

    def arrays(self) -> list[np.ndarray]:
        """The features as float32 arrays; blocks until a GPU's copies have finished."""
        if self._computed is None:
            return [feature.to(HOST, torch.float32).resolve_neg().numpy() for feature in self._features]
        stream = torch.cuda.Stream(self._features[0].device)  # from CUDA's pool of streams
        stream.wait_event(self._computed)
        with torch.cuda.stream(stream):
            landed = [
                torch.empty(feature.shape, dtype=torch.float32, pin_memory=True).copy_(feature, non_blocking=True)
                for feature in self._features
            ]
        stream.synchronize()
        # only now may their device memory be reused
        self._features = []
        return [tensor.numpy() for tensor in landed]
