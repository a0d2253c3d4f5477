"""Which layers to join: windows around a centre and greedy choice. Index logic only; the caller reads the features."""

from collections.abc import Callable, Sequence

import numpy as np

from probekit.runtime.errors import UserError


def windows(n_layers: int, centre: int, width: int = 5) -> tuple[int, ...]:
    """The `width` consecutive layers around `centre`, moved inwards at the ends (the paper's five, section 4.3)."""
    if not 0 <= centre < n_layers:
        raise UserError(f"layer {centre} was requested but there are {n_layers} layers (0 to {n_layers - 1}).")
    if width < 1:
        raise UserError(f"a window must hold at least one layer, but width {width} was given.")
    width = min(width, n_layers)
    start = min(max(centre - width // 2, 0), n_layers - width)
    return tuple(range(start, start + width))


def greedy(
    widths: Sequence[int], score: Callable[[list[tuple[int, ...]]], list[float]], max_width: int | None = None
) -> list[tuple[tuple[int, ...], float]]:
    """Add the layer that raises a held-out score most, until the budget of columns is spent or no layer gains.

    `widths` are the columns of each layer, `max_width` those allowed together (None: no limit). `score` gives held-out
    scores of sorted tuples of layers, all that a step compares at once; never the test split's. Returned is (layers,
    score) of every step, the first being the best single layer; ties go to the shallower layer.
    """
    chosen: tuple[int, ...] = ()
    steps: list[tuple[tuple[int, ...], float]] = []
    while True:
        left = np.inf if max_width is None else max_width - sum(widths[layer] for layer in chosen)
        candidates = [layer for layer, width in enumerate(widths) if layer not in chosen and width <= left]
        if not candidates:
            break
        scores = score([tuple(sorted((*chosen, layer))) for layer in candidates])
        scored = dict(zip(candidates, scores, strict=True))
        best = max(candidates, key=lambda layer: (scored[layer], -layer))
        if steps and scored[best] <= steps[-1][1]:
            break
        chosen = tuple(sorted((*chosen, best)))
        steps.append((chosen, scored[best]))
    if not steps:
        raise UserError(f"no layer fits a budget of {max_width} columns (the narrowest has {min(widths)}); raise it.")
    return steps
