"""What an encoder must beat: raw pixels, and the same architecture with random weights."""

import json
from collections.abc import Mapping
from typing import Any

from probekit.datasets import Dataset
from probekit.encoders import load_encoder
from probekit.encoders.pixels import resolution_of

PIXELS_AT_MOST = 32  # pixels per side: larger images have too many columns for a control


def control_encoders(series: Mapping[str, tuple[Any, Any]], data: Dataset, device: str = "cpu") -> dict[str, Any]:
    """Raw pixels, and random weights of each architecture whose spec allows it: name -> encoder.

    `series` has the (spec, encoder) under study by name; a control that is among them is not made again. Raw pixels
    have the side of the images of `data`, but at most that of the encoders' input or 32.
    """
    kinds = {encoder.provenance.get("kind") for _, encoder in series.values()}
    made: dict[str, Any] = {}
    if "pixels" not in kinds:
        inputs = [e.provenance.get("resolution") for _, e in series.values()]
        known = [side for side in inputs if isinstance(side, int)]
        side = min([resolution_of("pixels", None, data), PIXELS_AT_MOST, *([max(known)] if known else [])])
        made["pixels"] = load_encoder(f"pixels:{side}", device=device)
    random = {name: control for name, (spec, _) in series.items() if (control := random_spec(spec))}
    seen: set[str] = set()
    for name, spec in random.items():
        encoder = load_as(spec, "random" if len(random) == 1 else f"random {name}", device, data)
        # two checkpoints of one run have the same untrained network
        same = json.dumps([encoder.provenance.get(key) for key in ("weights_hash", "palette_hash", "preparation")])
        if same not in seen:
            made[encoder.provenance["name"]] = encoder
        seen.add(same)
    return made


def random_spec(spec: Any) -> str | None:
    """The spec of the same architecture with random weights, or None where there is no such form."""
    scheme, colon, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not colon:
        return None
    return {"igpt": f"random:{rest}", "hf": f"random:hf:{rest}", "timm": f"random:timm:{rest}"}.get(scheme)


def load_as(spec: Any, name: str | None, device: str, data: Dataset) -> Any:
    """An encoder from its spec, with the given series name (None: its own); an encoder object is kept as it is."""
    if not isinstance(spec, str) and hasattr(spec, "layers"):
        return load_encoder(spec, name=name)
    return load_encoder(spec, name=name, device=device, data=data)
