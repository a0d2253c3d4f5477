"""Print how an encoder reads its layers: axes, special tokens, pooling."""

from itertools import groupby
from typing import Any

from probekit.encoders.pooling import AXES
from probekit.runtime.errors import some


def decision_lines(encoder: Any) -> list[str]:
    """One line per run of layers that are read the same way, then the norm and others, all from the provenance."""
    provenance = encoder if isinstance(encoder, dict) else encoder.provenance
    decisions = provenance.get("decisions") or {}
    lines = []
    for _, group in groupby(decisions, key=lambda name: sorted(decisions[name].items())):
        names = list(group)
        name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} layers)"
        lines.append(f"{name}: {_sentence(decisions[names[0]])}")
    if not decisions and provenance.get("pooling"):
        lines.append(f"pooling: {provenance['pooling']}")
    for key in ("norm", "input", "pictures", "normalisation"):
        if isinstance(provenance.get(key), str):
            lines.append(f"{key}: {provenance[key]}")
    for key, what in (
        ("weights_missing", "not in the file, not used by any layer"),
        ("weights_unused", "in the file, not used"),
    ):
        keys = list(provenance.get(key) or [])
        if keys:
            lines.append(f"weights {what}: {some(keys)}")
    return lines


def _sentence(decision: dict[str, Any]) -> str:
    prefix, positions = decision["prefix_tokens"], decision["positions"]
    kind = AXES[decision["axes"]]
    if decision["axes"] == "BD":
        return f"{kind} of width {decision['width']}, used as they are"
    special = f" after {prefix} special token{'s' * (prefix > 1)}" if prefix else ""
    how = {
        "mean": f"mean over {positions} positions{special}",
        "cls": "the first (CLS) token",
        "both": f"the first (CLS) token and the mean over {positions} positions{special}",
    }[decision["pool"]]
    return f"{kind}, {how}, width {decision['width']}"
