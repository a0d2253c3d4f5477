"""Disk, memory and time before anything starts: arithmetic from sizes, and a short calibration for the rates."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROW_BYTES = 24  # label, row id and image hash


@dataclass(frozen=True)
class Estimate:
    """What a step will take: bytes on disk, bytes of memory, seconds."""

    step: str
    disk: int
    memory: int
    seconds: float


def feature_bytes(rows: int, widths: Sequence[int], dtype: str = "float32") -> int:
    """Bytes of a feature file's rows: every layer, labels, row ids and hashes."""
    return rows * (sum(widths) * (2 if dtype == "float16" else 4) + ROW_BYTES)


def matmul_rate(size: int = 1024, seconds: float = 0.5, device: str = "cpu") -> float:
    """This machine's float32 matrix-product rate in FLOP/s: the best of as many products as fit in `seconds`."""
    import torch

    a = torch.rand(size, size, device=device)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a number waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def plan_extract(
    encoder: Any, data: Any, batch_size: int = 128, dtype: str = "float32", seconds: float = 3.0
) -> Estimate:
    """Estimate an extraction from a few real batches: decoding, preparing and the encoder's forward pass.

    Parameters
    ----------
    encoder : Encoder
    data : Dataset
    seconds : how long to calibrate at most, after one batch to warm up
    """
    import numpy as np
    import torch

    splits: Mapping[str, Any] = data.splits
    rows = sum(len(splits[name]) for name in splits)
    part = splits[next(iter(splits))]
    size = min(batch_size, len(part))
    times: list[float] = []
    until = time.perf_counter() + seconds
    images = None
    while len(times) < 2 or time.perf_counter() < until:
        begun = time.perf_counter()
        images = np.stack([encoder.prepare(image) for image in part.images(0, size)])
        with torch.inference_mode():
            for feature in encoder(images, part.row_ids[:size]):
                feature.cpu()
        times.append(time.perf_counter() - begun)
    steady = sorted(times[1:])[(len(times) - 1) // 2]
    disk = feature_bytes(rows, encoder.widths, dtype)
    # at most two batches of features wait for the writer beside the one being computed
    memory = 3 * feature_bytes(size, encoder.widths) + 3 * (0 if images is None else images.nbytes)
    return Estimate("extract", disk, memory, steady * rows / size)


def plan_train(
    flops_per_image: int, n_params: int, steps: int, batch_size: int, rate: float, checkpoints: int = 5
) -> Estimate:
    """Estimate training: a step costs three forward passes; weights, gradients and two moments in float32 are kept.

    Parameters
    ----------
    flops_per_image : of one forward pass (`ModelConfig.flops_per_image`)
    rate : FLOP/s that the device reaches (`matmul_rate`, times the devices used)
    checkpoints : how many are kept on disk, each with weights and two moments

    Notes
    -----
    Activations are not counted in the memory.
    """
    return Estimate(
        "train", checkpoints * 12 * n_params, 16 * n_params, 3 * flops_per_image * batch_size * steps / rate
    )


def plan_sweep(
    rows: int, widths: Sequence[int], n_classes: int, n_penalties: int, rate: float, iterations: int = 100
) -> Estimate:
    """Estimate a sweep: each iteration of each penalty multiplies by the features twice, over every layer.

    `iterations` is the mean over penalties; weak penalties need several hundred, strong ones under ten.
    """
    outputs = 1 if n_classes == 2 else n_classes
    flops = sum(4 * rows * width * outputs for width in widths) * n_penalties * iterations
    disk = sum(4 * width * outputs for width in widths)
    memory = rows * (max(widths) * 8 + n_penalties * outputs * 4)
    return Estimate("sweep", disk, memory, flops / rate)
