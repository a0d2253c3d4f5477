"""The linear probe of the depth curve: multinomial logistic regression, C chosen on held-out rows, certified."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from probekit.probes.probe import FittedLinear, Probe
from probekit.selection.choose_C import choose_C, score_path
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.selection.settings import FitSettings
from probekit.solver.objective import C_to_l2
from probekit.solver.path import ProbePath


class LogisticProbe(Probe):
    """A path of penalties a round, then the chosen C refitted with its standardiser computed anew."""

    kind = "linear"
    streams = True
    shards = True

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        selection = choose_C(X, split, protocol, settings)
        use = split.final(protocol.refit)
        rows = (X[use], split.y[use], split.weights[use])
        path = settings.fit_path(rows[0], rows[1], [selection.chosen], rows[2], protocol)
        columns = np.searchsorted(path.classes, rows[1])
        correct = settings.sum(score_path(path, *settings.shard(rows[0], columns, rows[2]))[0])
        weight = float(rows[2].sum())
        return FittedLinear(
            classes=path.classes,
            coef=path.coef[0],
            intercept=path.intercept[0],
            selection=replace(selection, l2s=C_to_l2(selection.grid, weight)),
            certificate=certificate_of(path),
            train_accuracy=float(correct[0] / weight),
            device=settings.device,
        )


def certificate_of(path: ProbePath) -> dict[str, Any]:
    """The certificate of a final fit, from a path of one penalty; `kind` is the kind of bound of `gap`."""
    names = ("n_iter", "grad_rel", "gap", "kind", "stop_reason")
    return {"converged": bool(path.converged[0])} | {name: path.certificates[name][0].item() for name in names}
