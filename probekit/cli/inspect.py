"""`probekit inspect`: shapes, norms and effective rank of every layer, and the similarity of layers, without labels."""

from pathlib import Path
from typing import Any

from probekit.cli.console import note, say
from probekit.cli.plot import write_figure


def inspect(file: Path, *, split: str | None = None, picture: Path | None = None) -> Any:
    """Show the contents of a feature file, layer by layer.

    Parameters
    ----------
    file
        The feature file.
    split
        Split whose rows are used; by default the first.
    picture
        Draw the layers' similarity (linear CKA) to this SVG, PNG or PDF file.
    """
    from probekit.features.inspect import cka, plot_cka
    from probekit.features.inspect import inspect as inspect_features
    from probekit.features.store import FeatureStore
    from probekit.reports.figures.style import style

    store = FeatureStore.open(file)
    name = store.encoder.get("name", "unnamed encoder")
    say(f"{file}: {name} on {store.dataset.get('name', 'unnamed data')}, {store.dtype}")
    say("rows: " + ", ".join(f"{part} {len(store.labels(part)):,}" for part in store.splits))
    if picture is not None:
        with style():
            write_figure(plot_cka(cka(store, split), store.layers).figure, picture)
        note(f"wrote {picture}")
    return inspect_features(store, split)
