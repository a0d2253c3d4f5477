"""RankMe is its formula."""

import numpy as np
import pytest

from probekit.probes.rankme import rankme


def test_rankme_is_its_formula():
    rng = np.random.default_rng(0)
    for shape in ((50, 8), (8, 50)):
        X = rng.normal(size=shape).astype(np.float32)
        values = np.linalg.svd(X.astype(float), compute_uv=False)
        shares = values / values.sum() + 1e-7
        assert rankme(X) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert rankme(np.linalg.qr(rng.normal(size=(20, 4)))[0]) == pytest.approx(4, rel=1e-4)
    assert rankme(np.outer(rng.normal(size=20), rng.normal(size=6))) == pytest.approx(1, abs=1e-3)
    assert rankme(np.zeros((5, 3))) == 0
