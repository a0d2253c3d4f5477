"""Attentive probes as records: the learning rate chosen on held-out rows, the module kept in the probe file.

n rows, T tokens, D features, K classes; features come as (n, T * D).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from probekit.probes.attentive import AttentivePool, AttentiveProbe, fit_attentive
from probekit.probes.probe import Fit
from probekit.runtime.device import usable_device
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import Choice, Solver, final_rows, grid_ends
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.solver.objective import log_probabilities

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # AIM too searches the rate for each model; the grid is ours
SETTINGS: dict[str, Any] = {"epochs": 20, "batch_size": 256, "weight_decay": 0.1}
HEADS = 8
PREFIX = "attentive."  # of the module's arrays in a probe file


def token_widths(encoder: dict[str, Any], width: int) -> list[int]:
    """The columns of each token (T entries of D) of a layer of `width` columns.

    Raises
    ------
    UserError
        The features are pooled.
    """
    n_tokens = encoder.get("tokens")
    if not n_tokens or width % n_tokens:
        raise UserError(
            "An attentive probe needs every token's features, but these are pooled; "
            "extract with `probekit extract tokens:igpt:RUN DATASET --layers 05 --out tokens.h5`."
        )
    return [width // n_tokens] * n_tokens


def fit_attention(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """A probe for every learning rate on the rows that are not held out, then the best on the protocol's final rows.

    The module normalises its tokens itself, so the protocol's scaling and penalties do not apply.
    """
    ((fitted, held),) = rows.rounds("val")
    classes, columns = np.unique(rows.y, return_inverse=True)
    tokens = X.reshape(len(X), len(widths), widths[0])
    heads = max(h for h in range(1, HEADS + 1) if widths[0] % h == 0)

    def train(which: np.ndarray, rate: float) -> AttentiveProbe:
        drawn = np.repeat(which, rows.weights[which].astype(int))  # a row drawn twice by the bootstrap is there twice
        options = {**SETTINGS, "n_heads": heads, "seed": rows.seed, "device": solver.device}
        return fit_attentive(tokens[drawn], rows.y[drawn], learning_rate=rate, **options)

    accuracy, losses, weights = [], [], rows.weights[held]
    for rate in LEARNING_RATES:
        log_proba = log_probabilities(train(fitted, rate).decision_function(tokens[held]))
        accuracy.append(float((log_proba.argmax(axis=1) == columns[held]) @ weights / weights.sum()))
        losses.append(float(-log_proba[np.arange(len(held)), columns[held]] @ weights / weights.sum()))
    unknown = np.full(len(LEARNING_RATES), None)
    n_steps = SETTINGS["epochs"] * max(len(fitted) // SETTINGS["batch_size"], 1)
    choice = Choice.from_figures(
        np.array(LEARNING_RATES), accuracy, losses, "val", grid_ends=grid_ends(LEARNING_RATES), grad_rel=unknown,
        gap=unknown, n_iter=np.full(len(LEARNING_RATES), n_steps), converged=np.zeros(len(LEARNING_RATES), bool),
    )  # fmt: skip
    use = final_rows(rows, protocol)
    probe = train(use, choice.C)
    right = probe.predict(tokens[use]) == rows.y[use]
    certificate = {
        "converged": False, "n_iter": n_steps, "grad_rel": None, "gap": None, "stop_reason": "end of the schedule",
    }  # fmt: skip
    found = {"rule": "attentive probe", "learning_rate": choice.C, "n_heads": heads, "tokens": len(widths), **SETTINGS}
    share = float(right @ rows.weights[use] / rows.weights[use].sum())
    extra_arrays = {PREFIX + name: value.cpu().numpy() for name, value in probe.module.state_dict().items()}
    zero = np.zeros(len(LEARNING_RATES))
    return Fit(
        classes,
        np.zeros((len(classes), 0)),
        np.zeros(len(classes)),
        choice,
        certificate,
        share,
        zero,
        found,
        extra_arrays,
    )


def attentive_part(probe: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the module in a probe file; none for other probes."""
    return {name: values for name, values in probe.items() if name.startswith(PREFIX)}


def attentive_log_proba(probe: dict[str, np.ndarray], X: np.ndarray, device: str) -> np.ndarray:
    """Logarithms of class probabilities (n, K) by the module kept in a probe file."""
    state = {name.removeprefix(PREFIX): torch.from_numpy(a) for name, a in attentive_part(probe).items()}
    width, heads = state["key.weight"].shape[0], state["query"].shape[0]
    module = AttentivePool(width, heads, len(state["head.bias"]))
    module.load_state_dict(state)
    scores = AttentiveProbe(module.to(usable_device(device)).eval(), probe["classes"]).decision_function(
        X.reshape(len(X), -1, width)
    )
    return log_probabilities(scores)
