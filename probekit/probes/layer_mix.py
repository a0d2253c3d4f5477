"""A learned mix of layers: one linear probe on a softmax-weighted sum of them, as SUPERB's probes of speech models do.

L layers of one width D, N rows, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probekit.probes.logistic import certificate_of
from probekit.probes.probe import FittedLinear, Probe, standardized
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import CERTIFICATE, HeldOut, cross_validate, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, subsample_grid
from probekit.selection.settings import FitSettings
from probekit.solver.objective import C_to_l2, log_probabilities
from probekit.solver.path import ProbePath, fit_path

Array = NDArray[np.float64]


class LayerMixProbe(Probe):
    """A softmax-weighted sum of layers: C chosen on a subsampled grid, a mix learned for each."""

    kind = "mix"
    reads = "layers"

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return subsample_grid(protocol.Cs)

    def fit(
        self, X: np.ndarray, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        if len(set(widths)) != 1:
            raise UserError(f"A mix needs layers of one width, but they have {', '.join(map(str, widths))} columns.")
        Z, shift, scale = standardized(X, split, protocol)
        options: dict[str, Any] = {"tol": protocol.tol, "backend": settings.backend, "device": settings.device}
        columns = split.encoded[1]

        def learn(which: np.ndarray, C: float) -> LayerMix:
            layers = np.split(Z[which], len(widths), axis=1)
            return fit_layer_mix(layers, split.y[which], C, split.weights[which], **options)

        def scores(mix: LayerMix, which: np.ndarray) -> Array:
            mixed = np.einsum("l,lnd->nd", mix.weights, np.stack(np.split(Z[which], len(widths), axis=1)))
            return mix.path.decision_function(mixed)[0]

        def fit_and_score(Cs: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            mixes = [learn(fitted, C) for C in Cs]
            log_proba = log_probabilities(np.stack([scores(mix, held) for mix in mixes]))
            certificates = [certificate_of(mix.path) for mix in mixes]
            facts = {name: np.array([c[name] for c in certificates]) for name in CERTIFICATE}
            return score_log_proba(log_proba, columns[held], split.weights[held], facts)

        rule = split.resolve_rule(protocol.selection)
        selection = cross_validate(self.grid(protocol), split.rounds(rule), fit_and_score, rule, settings.on_fit)
        use = split.final(protocol.refit)
        mix, weights = learn(use, selection.chosen), split.weights[use]
        correct = score_log_proba(log_probabilities(scores(mix, use)[None]), columns[use], weights).correct[0]
        coef = mix.concatenated_coef() / scale
        return FittedLinear(
            classes=mix.path.classes,
            coef=coef,
            intercept=mix.path.intercept[0] - coef @ shift,
            selection=replace(selection, l2s=C_to_l2(selection.grid, weights.sum())),
            certificate=certificate_of(mix.path) | {"mix_gradient": mix.mix_gradient},
            train_accuracy=float(correct / weights.sum()),
            search_info={"rule": "softmax mix of layers", "weights": mix.weights.tolist()},
        )


@dataclass(frozen=True, eq=False)
class LayerMix:
    """A fitted mix.

    Attributes
    ----------
    weights : (L,) shares of the layers, summing to 1
    path : the certified probe of the mix, one penalty; exact for these weights
    mix_gradient : max|gradient| of the objective with respect to the weights' logits at the answer: the mix is not a
        convex problem, so this says "stationary", not "best"
    """

    weights: Array
    path: ProbePath
    mix_gradient: float

    def concatenated_coef(self) -> Array:
        """Coefficients on the concatenated layers (R, L*D)."""
        return np.concatenate([weight * self.path.coef[0] for weight in self.weights], axis=1)


def fit_layer_mix(
    layers: Sequence[ArrayLike],
    y: ArrayLike,
    C: float,
    sample_weight: ArrayLike | None = None,
    max_iter: int = 200,
    **options: object,
) -> LayerMix:
    """Minimise `1/2 ||W||^2 + C sum_i s_i ce_i(W sum_l softmax(a)_l x_il + b)` over W, b and a, from equal shares.

    All are facts together by L-BFGS in float64; then W and b are solved exactly for that mix and certified.

    Parameters
    ----------
    layers : L arrays (N, D); standardise them first if their scales differ
    y : (N,) labels
    C : inverse penalty
    sample_weight : (N,), None for ones
    options : of the final `fit_path`

    Raises
    ------
    UserError
        The layers differ in width.
    """
    stacked = [np.asarray(layer, np.float64) for layer in layers]
    if len({layer.shape for layer in stacked}) != 1:
        raise UserError(f"A mix needs layers of one width, but got {', '.join(str(x.shape[1]) for x in stacked)}.")
    x_LND = torch.from_numpy(np.stack(stacked))
    classes, columns = np.unique(np.asarray(y), return_inverse=True)
    target = torch.from_numpy(columns)
    weights = np.ones(len(columns)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    share = torch.from_numpy(weights / weights.sum())
    l2 = float(C_to_l2(C, weights.sum()))
    n_rows = len(classes) if len(classes) > 2 else 1
    logits_L = torch.zeros(len(stacked), dtype=torch.float64, requires_grad=True)
    coef = torch.zeros(n_rows, x_LND.shape[2], dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros(n_rows, dtype=torch.float64, requires_grad=True)

    def objective() -> torch.Tensor:
        # scores of every layer first: L products of (N, D) with W, then a sum over layers, cheaper than mixing features
        scores = torch.einsum("l,lnr->nr", logits_L.softmax(dim=0), x_LND @ coef.T) + intercept
        if n_rows == 1:
            losses = torch.nn.functional.softplus(torch.where(target == 1, -scores[:, 0], scores[:, 0]))
        else:
            losses = torch.nn.functional.cross_entropy(scores, target, reduction="none")
        return share @ losses + 0.5 * l2 * coef.square().sum()

    optimiser = torch.optim.LBFGS(
        [logits_L, coef, intercept], max_iter=max_iter, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = objective()
        value.backward()
        return value

    optimiser.step(closure)
    mix = logits_L.detach().softmax(dim=0).numpy()
    mixed = np.einsum("l,lnd->nd", mix, x_LND.numpy())
    path = fit_path(mixed, np.asarray(y), [C], sample_weight=sample_weight, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        coef.copy_(torch.from_numpy(path.coef[0]))
        intercept.copy_(torch.from_numpy(path.intercept[0]))
    closure()
    assert logits_L.grad is not None
    return LayerMix(mix, path, float(logits_L.grad.abs().max()))
