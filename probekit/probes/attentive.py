"""The attentive probe of AIM: a learned query attends over an image's tokens, and a linear head classifies the result.

N images, T tokens, D features, H heads, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from igpt_model.devices import find_device, to_device
from igpt_model.ranges import POSITIVE, WEIGHT, check_at_least, check_range
from probekit.probes.probe import FittedProbe, Probe, ReadRows
from probekit.probes.sgd import array_batches, cosine, count_steps, end_of_schedule, without_certificate
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import Array, FitSettings, HeldOut, cross_validate, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, SGDConfig
from probekit.solver.objective import log_probabilities

PREFIX = "attentive."  # prefix of the module's arrays in a probe file


class AttentivePool(nn.Module):
    """Attention of one learned query per head over tokens; keys and values are linear maps of normalised tokens.

    `width` is D, divisible by `n_heads`.
    """

    def __init__(self, width: int, n_heads: int, n_classes: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        # without a learned scale, as in AIM, because weight decay would shrink it
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.query = nn.Parameter(torch.empty(n_heads, width // n_heads))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, n_classes)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Class scores (B, K)."""
        B, T, D = tokens_BTD.shape
        x_BTD = self.norm(tokens_BTD.transpose(1, 2)).transpose(1, 2)
        shape = (B, T, self.n_heads, D // self.n_heads)
        key_BHTd, value_BHTd = (layer(x_BTD).view(shape).transpose(1, 2) for layer in (self.key, self.value))
        query_BH1d = self.query.expand(B, -1, -1)[:, :, None]
        gathered = nn.functional.scaled_dot_product_attention(query_BH1d, key_BHTd, value_BHTd)
        return self.head(gathered.reshape(B, D))


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedAttentive(FittedProbe):
    """A trained module; never marked as converged, because its objective is not convex.

    Tokens are (N, T, D), or flat (N, T * D) as in a feature file.
    """

    module: AttentivePool

    @torch.no_grad()
    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        width, device = self.module.key.in_features, self.module.query.device
        batches = (to_device(X[start : start + 256], device, torch.float32) for start in range(0, len(X), 256))
        scores = torch.cat([self.module(x.reshape(len(x), -1, width)) for x in batches])
        return log_probabilities(scores.cpu().double().numpy())

    def arrays(self) -> dict[str, np.ndarray]:
        return {PREFIX + name: value.cpu().numpy() for name, value in self.module.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], read_rows: ReadRows, device: str = "cpu") -> Self:
        own = {name: values for name, values in arrays.items() if name.startswith(PREFIX)}
        state = {name.removeprefix(PREFIX): torch.from_numpy(values) for name, values in own.items()}
        module = AttentivePool(state["key.weight"].shape[0], state["query"].shape[0], len(state["head.bias"]))
        module.load_state_dict(state)
        return cls(classes=arrays["classes"], module=module.to(find_device(device)).eval())


class AttentiveProbe(Probe):
    """AIM's probe: one module per learning rate, of which the best is retrained on the protocol's final rows.

    The module normalises its tokens, so the protocol's scaling and penalties do not apply.
    """

    kind = "attentive"
    reads = "tokens"
    tunes = "lr"
    fitted = FittedAttentive
    learning_rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # AIM also tunes the rate for each model; this grid is ours
    options: ClassVar[dict[str, Any]] = {"epochs": 20, "batch_size": 256, "weight_decay": 0.1}
    most_heads = 8

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return self.learning_rates

    def n_fits(self, split: TrainingRows, protocol: Protocol) -> int:
        return len(self.learning_rates) + 1

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedAttentive:
        columns = split.encoded[1]
        tokens = X.reshape(len(X), len(widths), widths[0])
        heads = max(h for h in range(1, self.most_heads + 1) if widths[0] % h == 0)

        def train(which: np.ndarray, rate: float) -> FittedAttentive:
            drawn = np.repeat(which, split.weights[which].astype(int))  # repeat rows by their bootstrap counts
            own = {**self.options, "n_heads": heads, "seed": split.seed, "device": settings.device}
            return fit_attentive(tokens[drawn], split.y[drawn], learning_rate=rate, **own)

        def fit_and_score(rates: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            made = [train(fitted, rate) for rate in rates]
            log_proba = np.stack([one.predict_log_proba(tokens[held]) for one in made])
            facts = without_certificate(len(rates), made[0].certificate["n_iter"])
            return score_log_proba(log_proba, columns[held], split.weights[held], facts)

        rates = self.learning_rates
        selection = cross_validate(rates, split.rounds("val"), fit_and_score, "val", settings.on_fit)
        use, rate = split.final(protocol.refit), selection.chosen
        final = train(use, rate)
        right = final.predict_log_proba(tokens[use]).argmax(axis=1) == columns[use]
        info = {"rule": "attentive probe", "learning_rate": rate, "n_heads": heads, "tokens": len(widths)}
        return replace(
            final,
            selection=selection,
            train_accuracy=float(right @ split.weights[use] / split.weights[use].sum()),
            search_info={**info, **self.options},
        )


def fit_attentive(
    tokens: ArrayLike,
    y: ArrayLike,
    *,
    n_heads: int = 8,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
) -> FittedAttentive:
    """Train with AdamW and a cosine schedule to zero; choose its settings on held-out rows, as for any probe.

    Parameters
    ----------
    tokens : (N, T, D) features of every position, as a tensor or an array (a memory map is read in batches)
    y : (N,) labels
    n_heads : must divide D
    epochs, batch_size, learning_rate, weight_decay : our defaults; AIM tunes the learning rate for each model
    seed : seed of the initial weights and the order of rows
    device : torch device

    Raises
    ------
    UserError
        Tokens are not (N, T, D) with one label per image, `n_heads` does not divide D, or a setting is out of range.
    """
    check_at_least(n_heads=(n_heads, 1))
    check_range("learning_rate", learning_rate, POSITIVE)
    check_range("weight_decay", weight_decay, WEIGHT)
    labels = np.asarray(y)
    shape = np.shape(tokens)
    if len(shape) != 3 or len(labels) != shape[0] or len(labels) < 2:
        raise UserError(
            f"tokens have shape {shape} and {len(labels)} labels; give (images, tokens, features), one label per image."
        )
    if shape[2] % n_heads:
        raise UserError(f"n_heads = {n_heads} does not divide {shape[2]} features; give a divisor.")
    classes, columns = np.unique(labels, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    module = AttentivePool(shape[2], n_heads, len(classes))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("head"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, shape[2] ** -0.5, generator=generator)
    target = find_device(device)
    module.to(target).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    source = tokens if isinstance(tokens, np.ndarray | Tensor) else np.asarray(tokens)
    order = SGDConfig(epochs=epochs, batch_size=batch_size, seed=seed)
    n_steps = count_steps(len(labels), order)
    for step, (X_BTD, y_B) in enumerate(array_batches(source, columns, order, buffer=len(labels))):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * cosine(step, n_steps)
        optimiser.zero_grad()
        scores = module(to_device(X_BTD, target, torch.float32))
        nn.functional.cross_entropy(scores, to_device(y_B, target)).backward()
        optimiser.step()
    return FittedAttentive(classes=classes, module=module.eval(), certificate=end_of_schedule(n_steps))
