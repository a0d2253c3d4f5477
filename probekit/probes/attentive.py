"""The attentive probe (AIM's): a learned query attends over a picture's tokens, a linear head reads what it gathers.

For tokens, arrays (N, T, D): feature files hold pooled features, so this is a function on arrays, not a verb.
N pictures, T tokens, D features, H heads, K classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from probekit.probes.sgd import cosine
from probekit.runtime.device import usable_device
from probekit.runtime.errors import UserError


class AttentivePool(nn.Module):
    """One learned query a head attends over tokens: keys and values are linear maps of normalised tokens.

    Parameters
    ----------
    width : D, divisible by n_heads
    n_heads : H
    n_classes : K
    """

    def __init__(self, width: int, n_heads: int, n_classes: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.BatchNorm1d(
            width, affine=False, eps=1e-6
        )  # AIM's: no learned scale, so none is regularised away
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


@dataclass(frozen=True, eq=False)
class AttentiveProbe:
    """A trained attentive probe and its labels; it carries no certificate, for its problem is not convex."""

    module: AttentivePool
    classes: NDArray[Any]

    @torch.no_grad()
    def decision_function(self, tokens: ArrayLike, batch_size: int = 256) -> NDArray[np.float64]:
        """Class scores (N, K)."""
        rows = np.asarray(tokens)
        device = next(self.module.parameters()).device
        parts = [
            self.module(torch.from_numpy(np.ascontiguousarray(rows[start : start + batch_size], np.float32)).to(device))
            for start in range(0, len(rows), batch_size)
        ]
        return torch.cat(parts).cpu().double().numpy()

    def predict(self, tokens: ArrayLike) -> NDArray[Any]:
        """Labels (N,)."""
        return np.asarray(self.classes[self.decision_function(tokens).argmax(axis=1)])


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
) -> AttentiveProbe:
    """Train by AdamW with a cosine to zero; choose its settings on held-out rows, as with any probe.

    Parameters
    ----------
    tokens : (N, T, D) features of every position, a row-sliceable array (a memory map does)
    y : (N,) labels
    n_heads : must divide D
    epochs, batch_size, learning_rate, weight_decay : ours; AIM searches the rate for each model
    seed : of the first weights and of the order of rows, the only randomness

    Raises
    ------
    UserError
        Tokens are not (N, T, D) with a label each, or the heads do not divide D.
    """
    labels = np.asarray(y)
    shape = np.shape(tokens)
    if len(shape) != 3 or len(labels) != shape[0] or len(labels) < 2:
        raise UserError(
            f"tokens must be (pictures, tokens, features) with a label each, but are {shape} with {len(labels)} labels."
        )
    if shape[2] % n_heads:
        raise UserError(f"{n_heads} heads do not divide {shape[2]} features; give n_heads that does.")
    classes, columns = np.unique(labels, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    module = AttentivePool(shape[2], n_heads, len(classes))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("head"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, shape[2] ** -0.5, generator=generator)
    where = usable_device(device)
    module.to(where).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    size = min(batch_size, len(labels))
    n_steps, step = epochs * (len(labels) // size), 0
    source: Any = tokens if hasattr(tokens, "shape") else np.asarray(tokens)
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        for start in range(0, len(labels) - size + 1, size):
            rows = np.sort(order[start : start + size])
            batch = torch.from_numpy(np.ascontiguousarray(source[rows], np.float32)).to(where)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * cosine(step, n_steps)
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(batch), torch.from_numpy(columns[rows]).to(where)).backward()
            optimiser.step()
            step += 1
    return AttentiveProbe(module.eval(), classes)
