"""Windows hold neighbours within the network; the greedy choice is that of a search written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.evaluate.concat import greedy, windows
from probekit.runtime.errors import UserError


@settings(deadline=None)
@given(st.integers(1, 20), st.data())
def test_a_window_holds_its_centre_and_only_neighbours(n_layers, data):
    centre, width = data.draw(st.integers(0, n_layers - 1)), data.draw(st.integers(1, 25))
    window = windows(n_layers, centre, width)
    assert centre in window
    assert len(window) == min(width, n_layers)
    assert list(window) == list(range(window[0], window[-1] + 1))
    assert 0 <= window[0] <= window[-1] < n_layers
    if width // 2 <= centre < n_layers - width // 2 and width % 2:
        assert window[len(window) // 2] == centre


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 12))
def test_every_greedy_step_is_the_best_that_the_budget_allows(seed, n_layers, budget):
    rng = np.random.default_rng(seed)
    widths, worth = rng.integers(1, 4, n_layers).tolist(), rng.normal(size=n_layers)

    def score(sets):
        return [float(sum(worth[list(layers)]) - 0.1 * len(layers) ** 2) for layers in sets]

    if min(widths) > budget:
        with pytest.raises(UserError, match="no layer fits"):
            greedy(widths, score, budget)
        return
    steps = greedy(widths, score, budget)
    for before, (layers, value) in zip([((), -np.inf), *steps[:-1]], steps, strict=True):
        assert sum(widths[k] for k in layers) <= budget
        assert value > before[1]
        others = [tuple(sorted({*before[0], k})) for k in range(n_layers) if k not in before[0]]
        allowed = [o for o in others if sum(widths[k] for k in o) <= budget]
        assert value == max(score(allowed))


def test_windows_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="at least 1 layer"):
        windows(5, 2, 0)
