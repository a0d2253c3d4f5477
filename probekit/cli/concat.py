"""`probekit concat`: probes of joined layers, a window round the best one and a greedy choice."""

from pathlib import Path
from typing import Literal

from probekit.cli.console import say
from probekit.cli.progress import progress
from probekit.cli.sweep import Penalties, show_curves


def concat(
    features: Path,
    /,
    *,
    out: Path | None = None,
    protocol: str = "igpt",
    Cs: Penalties = None,
    window: int = 5,
    greedy_width: int | None = None,
    series: str | None = None,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["auto", "float32", "float64"] = "auto",
    banded: bool = False,
    mix: bool = False,
    workers: int = 1,
    parallel: Literal["layers", "rows"] = "layers",
) -> None:
    """Probe joined layers; single layers that are missing are swept first. Run again after a kill it goes on.

    Parameters
    ----------
    features
        The feature file.
    out
        Folder of results.jsonl and probes/; that of the feature file unless given.
    protocol
        The protocol of the sweep.
    Cs
        Penalties in place of the protocol's, as scikit-learn's C: --Cs 0.01 --Cs 1.
    window
        Neighbouring layers joined round the best one; the paper joins five.
    greedy_width
        Columns that the greedy choice may use; as many as the window has unless given, 0 for no greedy choice.
    series
        Name of the curve; the encoder's name unless given.
    backend
        Who solves.
    device
        Where the solver runs.
    dtype
        Precision of the solver; auto is float64 where that costs nothing.
    banded
        Probe the window with one penalty a layer as well.
    mix
        Probe a learned softmax mix of the window's layers as well.
    workers
        Processes that share the work and the cores: small fits gain by one a core, large ones fill all cores alone.
    parallel
        What processes started by torchrun share: layers (each fits others), or rows of one layer too large for one.
    """
    from probekit import FeatureStore
    from probekit.evaluate.concat import concat as join_layers

    folder = features.parent if out is None else out
    with progress("join layers", "sets of layers") as show:
        results = join_layers(
            features,
            folder,
            protocol,
            Cs=Cs,
            window=window,
            greedy_width=greedy_width,
            series=series,
            backend=backend,
            device=device,
            dtype=dtype,
            probes=[kind for kind, wanted in (("banded", banded), ("mix", mix)) if wanted],
            workers=workers,
            parallel=parallel,
            progress=show,
        )
    show_curves(folder)
    name = series or str(FeatureStore.open(features).encoder.get("name", "encoder"))  # as the records are named
    joined = [record for kind in ("concat", "banded", "mix") for record in results.of(name, kind)]
    for record in joined:
        how = "joined" if record.kind == "concat" else record.kind
        say(f"{record.series} layers {' '.join(record.layers)} {how}: test accuracy {100 * record.accuracy:.1f} %")
