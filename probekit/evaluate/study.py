"""`study`: extract, sweep, concatenate layers, probe controls, report, for several encoders and data sets; resumable.

Files: `out/study.json` (settings of the study), `features/SERIES.h5`, `results.jsonl`, `probes/` and `report/`. Several
data sets have a folder each, and one report covers them all.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from igpt_model.arguments import checked
from igpt_model.differences import claim
from igpt_model.ranges import check_at_least
from probekit.datasets import Dataset, load_dataset
from probekit.datasets.catalogue import written_tests
from probekit.datasets.shifted import with_tests
from probekit.encoders.encoder import Encoder
from probekit.encoders.loading import load_encoder
from probekit.encoders.pixels import resolution_of
from probekit.evaluate.concat import concat
from probekit.evaluate.runner import seed_list
from probekit.evaluate.sweep import sweep
from probekit.features.extract import extract
from probekit.results.results import Results
from probekit.results.runs import run_name
from probekit.runtime.errors import UserError
from probekit.runtime.escape import file_name, file_names
from probekit.selection.protocol import Protocol, resolve_protocol

SETTINGS_NAME = "study.json"
PIXELS_AT_MOST = 32  # pixels per side; larger images have too many columns for a control
Progress = Callable[[str, str, int, int], Any]


@checked
def study(
    encoders: Encoder | str | Sequence[Encoder | str] | Mapping[str, Encoder | str | Sequence[Encoder | str]],
    datasets: Dataset | str | Sequence[Dataset | str],
    out: str | Path,
    protocol: Protocol | str = "igpt",
    Cs: Sequence[float] | None = None,
    window: Sequence[int] | int = 5,
    greedy_width: int | None = None,
    controls: bool = True,
    limit: int | None = None,
    seeds: int | Sequence[int] = 1,
    root: str | Path | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["auto", "float32", "float64"] | None = None,
    tests: Mapping[str, Any] | Sequence[str] | None = None,
    checks: Sequence[str] = (),
    progress: Progress | None = None,
) -> Results:
    """Measure encoders on data sets: features of every layer, probes of single and concatenated layers, a report.

    Raw pixels and the same architectures with random weights are probed for comparison. Repeat the call to resume after
    an interruption; if everything is complete, only the report is written again.

    Parameters
    ----------
    encoders : Encoder, str, sequence of them, or mapping from name to them or lists of them
        igpt:RUN, igpt:RUN@STEP, hf:NAME, timm:NAME, torch:package.module:function, pixels, histogram, random:...; the
        options of `load_encoder` follow a #, as in timm:NAME#pool=cls#layers=blocks.*. NAME=ENCODER names its curve.
        Encoders with the same NAME (in a mapping, a list) are pre-training runs of one model, drawn as one curve with
        mean and interval.
    datasets : Dataset, str, or sequence of them
        Names of `probekit datasets`, folders of images, or archives.
    out : str or Path
        Folder for features, results and report; it must not contain a different study.
    protocol : Protocol or str
        igpt, dinov2-45, clip-coarse-fine or kornblith.
    Cs : sequence of float
        Penalties that replace the protocol's, in scikit-learn's convention for C.
    window : int or sequence of int
        Number of neighbouring layers concatenated around the best one; 0 concatenates none. Controls are not
        concatenated.
    greedy_width : int
        Maximum number of columns of the greedy choice; by default that of the widest window; 0 disables it.
    controls : bool
        Also probe raw pixels, and the same architectures with random weights.
    limit : int
        At most this many images of each split, keeping the class proportions.
    seeds : int or sequence of int
        Number of repetitions, as in `sweep`.
    root : str or Path
        Folder of the data sets, for those that are not embedded.
    batch_size : int
        Images per batch; by default 128, or that of the feature file when it is resumed.
    workers : int
        Processes that decode and prepare images; 0 does it in this process.
    backend : str
        Solver backend. Every solution is checked against our objective.
    device : str
        Device of encoders and solver: cpu, cuda, cuda:1.
    dtype : str
        Precision of the solver; by default that of `sweep`.
    tests : sequence of str, or mapping from name to data set
        Further test sets, NAME=DATASET, for example fog=CIFAR-10-C#corruption=fog. The same probes are tested on them,
        and they are not used for any choice. Each gets curves and verdicts like the data set's own test rows.
    checks : sequence of str
        Further kinds of probes for every layer, each with its own curve: knn, ridge, class-mean.
    progress : callable
        Called with (stage, unit, number done, total).

    Returns
    -------
    Results
        All records of all data sets. The report is `out/report/index.html`.

    Raises
    ------
    UserError
        Names are not unique, `out` contains a different study, or `extract`, `sweep` or `concat` raised it.
    """
    out = Path(out)
    check_at_least(limit=(limit, 1), batch_size=(batch_size, 1), workers=(workers, 0), greedy_width=(greedy_width, 0))
    seed_list(seeds)
    window = window[0] if isinstance(window, Sequence) and len(window) == 1 else window
    for size in window if isinstance(window, Sequence) else (window,):
        check_at_least(window=(size, 0))
    specs = _named(encoders)
    loaded = [data if isinstance(data, Dataset) else load_dataset(data, root=root) for data in _listed(datasets)]
    maps: dict[str, Any] = {}
    if isinstance(tests, Mapping):
        extra_tests = {name: data if isinstance(data, Dataset) else load_dataset(data) for name, data in tests.items()}
    else:
        extra_tests, maps = written_tests(tests or (), root)
        tests = dict(text.split("=", 1) for text in tests or ())
    if extra_tests:
        loaded = [with_tests(data, extra_tests, maps) for data in loaded]
    series = _by_name([(spec, load_as(spec, name, device, loaded[0])) for name, spec in specs])
    folders = _folders(loaded, out)
    settled = resolve_protocol(protocol, Cs)
    flags = {  # in the form of the command line, so that `--config study.json` can read them
        "encoders": {name: _described(*own) for name, own in series.items()},
        "on": [_asked_for(given, data) for given, data in zip(_listed(datasets), loaded, strict=True)],
        "protocol": settled.name.rstrip("*"),
        "Cs": settled.Cs,
        "window": window,
        "greedy_width": greedy_width,
        "controls": controls,
        "limit": limit,
        "seeds": seeds,
        "backend": backend,
        "dtype": dtype,
        "test": {name: _asked_for(given, extra_tests[name]) for name, given in tests.items()},
        "checks": checks,
    }
    settings = {"study": flags, "protocol": settled.resolved()}
    _open(out, settings)
    show_stage = progress or (lambda *_: None)
    solving: dict[str, Any] = {"protocol": settled, "backend": backend, "device": device}
    solving |= {"dtype": dtype} if dtype else {}
    for data, folder in folders:
        here = {name: encoder for name, (_, encoder) in series.items()}
        if controls:
            here |= control_encoders(series, data, device)
        (folder / "features").mkdir(parents=True, exist_ok=True)
        how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "limit": limit}
        stores = {}
        for (name, encoder), stem in zip(here.items(), file_names([*here]), strict=True):
            show = partial(show_stage, f"extract {name}", "images")
            stores[name] = extract(encoder, data, folder / "features" / f"{stem}.h5", progress=show, **how)
            _open(out, settings)  # another process may have started a different study at the same time
        for name, store in stores.items():
            show = partial(show_stage, f"probe {name}", "fits")
            sweep(store, out=folder, series=name, seeds=seeds, checks=checks, progress=show, **solving)
        for name in series if window else ():
            if len(stores[name].layers) > 1:
                own: dict[str, Any] = {"series": name, "window": window, "greedy_width": greedy_width, "seeds": seeds}
                show = partial(show_stage, f"concatenate layers of {name}", "sets of layers")
                concat(stores[name], folder, progress=show, **own, **solving)
    results = Results(*(folder for _, folder in folders))
    results.report(out / "report")
    return results


def control_encoders(series: Mapping[str, tuple[Any, Any]], data: Dataset, device: str = "cpu") -> dict[str, Any]:
    """Raw pixels, and each architecture with random weights if its spec allows it: name -> encoder.

    `series` maps names to the (spec, encoder) under study; controls among them are not repeated. Raw pixels have the
    size of the images of `data`, limited to that of the encoders' input or 32.
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
        # checkpoints of one run share the same untrained network
        same = json.dumps([encoder.provenance.get(key) for key in ("weights_hash", "palette_hash", "preparation")])
        if same not in seen:
            made[encoder.provenance["name"]] = encoder
        seen.add(same)
    return made


def random_spec(spec: Any) -> str | None:
    """The spec of the same architecture with random weights, or None if there is no such spec."""
    scheme, colon, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not colon:
        return None
    return {"igpt": f"random:{rest}", "hf": f"random:hf:{rest}", "timm": f"random:timm:{rest}"}.get(scheme)


def load_as(spec: Any, name: str | None, device: str, data: Dataset) -> Any:
    """An encoder from its spec, with the given series name (None: its own); encoder objects are returned as is."""
    if not isinstance(spec, str) and hasattr(spec, "layers"):
        return load_encoder(spec, name=name)
    return load_encoder(spec, name=name, device=device, data=data)


def _asked_for(given: Any, data: Dataset) -> str:
    """A data set in the form of `--on` and `--test`: its path, followed by any options."""
    return given if isinstance(given, str) and "#" in given else str(data.provenance.get("path", data.name))


def _open(out: Path, settings: Mapping[str, Any]) -> None:
    """Write study.json, also over that of a study which failed before its first features; refuse another study."""
    begun = any(out.glob("features/*.h5")) or any(out.glob("*/features/*.h5"))
    claim(out / SETTINGS_NAME, settings, lambda there: bool(there) and begun, "a study")


def _by_name(loaded: Sequence[tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """name -> (spec, encoder), of (spec, encoder) pairs."""
    names = [str(encoder.provenance["name"]) for _, encoder in loaded]
    for name in names:
        if names.count(name) > 1:
            written = loaded[0][0] if isinstance(loaded[0][0], str) else "ENCODER"
            raise UserError(
                f"Two encoders are called {name!r}; give each a name, as in 'first={written}', or, if they are "
                "pre-training runs of one model, give both the same name as in NAME=ENCODER."
            )
    return dict(zip(names, loaded, strict=True))


def _described(spec: Any, encoder: Any) -> str:
    return spec if isinstance(spec, str) else f"{type(encoder).__name__} {encoder.provenance.get('weights_hash')}"


def _folders(datasets: Sequence[Dataset], out: Path) -> list[tuple[Dataset, Path]]:
    """The folder of each data set's features and results: `out` itself for a single data set."""
    if len(datasets) == 1:
        return [(datasets[0], out)]
    slugs = [file_name(data.name) for data in datasets]
    taken = [slug.casefold() for slug in slugs]
    for slug in slugs:
        if taken.count(slug.casefold()) > 1:
            raise UserError(f"Two data sets have the folder name {slug!r}; leave one out, or rename it.")
        if slug.casefold() in ("", "report"):
            raise UserError(f"Data set name {slug!r} cannot be used for a folder; rename that data set.")
    return [(data, out / slug) for data, slug in zip(datasets, slugs, strict=True)]


def _listed(given: Any) -> list[Any]:
    # a tuple of arrays is a single data set
    several = isinstance(given, list) or (isinstance(given, tuple) and all(not hasattr(x, "shape") for x in given))
    items = list(given) if several else [given]
    if not items:
        raise UserError("A study needs at least one encoder and one data set; give both.")
    return items


def _named(encoders: Any) -> list[tuple[str | None, Any]]:
    """Pairs of given name (None: the encoder's own) and spec; encoders with the same name are runs of one model."""
    pairs: list[tuple[str | None, Any]] = []
    if isinstance(encoders, Mapping):
        several = {str(name): own if isinstance(own, list | tuple) else [own] for name, own in encoders.items()}
        pairs = [(name, spec) for name, own in several.items() for spec in own]
    else:
        for spec in _listed(encoders):
            # names have no colon or slash, so that "igpt:runs/a=b" remains a path
            match = re.fullmatch(r"([\w .,@+-]+)=(.+)", spec) if isinstance(spec, str) else None
            pairs.append((match[1], match[2]) if match else (None, spec))
    names = [name for name, _ in pairs]
    return [
        (run_name(name, names[: at + 1].count(name)) if name and names.count(name) > 1 else name, spec)
        for at, (name, spec) in enumerate(pairs)
    ]
