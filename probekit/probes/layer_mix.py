"""A learned mix of layers: one linear probe on their softmax-weighted sum, as SUPERB probes speech models.

L layers of one width D, N rows, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from igpt_model.devices import to_device
from probekit.probes.logistic import certificate_of
from probekit.probes.probe import FittedLinear, Probe, standardized
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import CERTIFICATE, Array, FitSettings, HeldOut, score_path
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, subsample_grid
from probekit.solver.objective import C_to_l2
from probekit.solver.path import ProbePath, fit_path


class LayerMixProbe(Probe):
    """A softmax-weighted sum of layers: C chosen on a subsampled grid, a mix learned for each."""

    kind = "mix"
    reads = "layers"

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return subsample_grid(protocol.Cs)

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        if len(set(widths)) != 1:
            raise UserError(f"A mix needs layers of equal width, but they have {', '.join(map(str, widths))} columns.")
        Z, shift, scale = standardized(X, split, protocol, settings.device)
        layers_LND = Z.view(len(Z), len(widths), widths[0]).transpose(0, 1)
        options: dict[str, Any] = {"tol": protocol.tol, "backend": settings.backend, "device": settings.device}
        columns = split.encoded[1]

        def learn(which: np.ndarray, C: float) -> LayerMix:
            return fit_layer_mix(layers_LND[:, which], split.y[which], C, split.weights[which], **options)

        def scored(mix: LayerMix, which: np.ndarray) -> tuple[Array, Array]:
            return score_path(mix.path, mix.mixed(layers_LND[:, which]), columns[which], split.weights[which])

        def fit_and_score(Cs: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            mixes = [learn(fitted, C) for C in Cs]
            correct, loss = np.concatenate([scored(mix, held) for mix in mixes], axis=1)
            certificates = [certificate_of(mix.path) for mix in mixes]
            facts = {name: np.array([c[name] for c in certificates]) for name in CERTIFICATE}
            return HeldOut(correct, loss, float(split.weights[held].sum()), facts)

        selection, use = self.cross_validate(split, protocol, settings, fit_and_score)
        mix, weight = learn(use, selection.chosen), float(split.weights[use].sum())
        coef = mix.concatenated_coef() / scale
        return FittedLinear(
            classes=mix.path.classes,
            coef=coef,
            intercept=mix.path.intercept[0] - coef @ shift,
            selection=replace(selection, l2s=C_to_l2(selection.grid, weight)),
            certificate=certificate_of(mix.path) | {"mix_gradient": mix.mix_gradient},
            train_accuracy=float(scored(mix, use)[0][0] / weight),
            search_info={"rule": "softmax mix of layers", "weights": mix.weights.tolist()},
            device=settings.device,
        )


@dataclass(frozen=True, eq=False)
class LayerMix:
    """A fitted mix: weights of the layers (L,), and a probe with one penalty that is certified for these weights.

    `mix_gradient` is max|gradient| of the objective with respect to the logits of the weights. The problem is not
    convex, so a small value indicates a stationary point, not the optimum.
    """

    weights: Array
    path: ProbePath
    mix_gradient: float

    def mixed(self, layers_LND: torch.Tensor) -> torch.Tensor:
        """The weighted sum (N, D) of layers, float64 on their device."""
        return torch.einsum("l,lnd->nd", to_device(self.weights, layers_LND.device), layers_LND.double())

    def concatenated_coef(self) -> Array:
        """Coefficients on the concatenated layers (R, L*D)."""
        return np.concatenate([weight * self.path.coef[0] for weight in self.weights], axis=1)


def fit_layer_mix(
    layers_LND: Any, y: np.ndarray, C: float, weights: Array, device: str = "cpu", **options: Any
) -> LayerMix:
    """Minimise `1/2 ||W||^2 + C sum_i s_i ce_i(W sum_l softmax(a)_l x_il + b)` over W, b and a, from equal weights.

    All are fitted together by L-BFGS in float64; then W and b are solved exactly for that mix and certified, with the
    `options` of `fit_path`. Standardise the layers first if their scales differ; y (N,) are labels, weights (N,).
    """
    x_LND = to_device(layers_LND, device, torch.float64)
    classes, columns = np.unique(y, return_inverse=True)
    target = to_device(columns, device)
    share = to_device(weights / weights.sum(), device)
    l2 = float(C_to_l2(C, weights.sum()))
    n_rows = len(classes) if len(classes) > 2 else 1
    shapes = ((len(x_LND),), (n_rows, x_LND.shape[2]), (n_rows,))
    logits_L, coef, intercept = (x_LND.new_zeros(shape).requires_grad_() for shape in shapes)

    def objective() -> torch.Tensor:
        # summing the scores of the layers, L products of (N, D) with W, is cheaper than mixing features
        scores = torch.einsum("l,lnr->nr", logits_L.softmax(dim=0), x_LND @ coef.T) + intercept
        if n_rows == 1:
            losses = torch.nn.functional.softplus(torch.where(target == 1, -scores[:, 0], scores[:, 0]))
        else:
            losses = torch.nn.functional.cross_entropy(scores, target, reduction="none")
        return share @ losses + 0.5 * l2 * coef.square().sum()

    optimiser = torch.optim.LBFGS(
        [logits_L, coef, intercept], max_iter=200, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = objective()
        value.backward()
        return value

    optimiser.step(closure)
    mix = logits_L.detach().softmax(dim=0)
    mixed = torch.einsum("l,lnd->nd", mix, x_LND)
    path = fit_path(mixed, y, [C], sample_weight=weights, device=device, **options)
    with torch.no_grad():
        coef.copy_(to_device(path.coef[0], device))
        intercept.copy_(to_device(path.intercept[0], device))
    closure()
    assert logits_L.grad is not None
    return LayerMix(mix.cpu().numpy(), path, float(logits_L.grad.abs().max()))
