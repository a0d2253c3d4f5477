"""Limits of one layer's score."""

import numpy as np

from probekit.results.curve import pointwise_limits
from probekit.results.metrics import METRICS


def test_limits_end_where_a_score_ends():
    """Student's interval of two draws, .1 and .9, is .5 +- 5: far wider than any score but the log-loss."""
    for name, most in (("ece", 1.0), ("brier", 2.0), ("top1", 1.0)):
        assert pointwise_limits(METRICS[name], np.array([0.1, 0.9]), None, 50) == (0.0, most)
    assert pointwise_limits(METRICS["log_loss"], np.array([0.1, 0.9]), None, 50)[1] > 5
