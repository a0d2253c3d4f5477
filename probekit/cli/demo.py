"""`probekit demo`: train, extract and probe in minutes; each stage resumes after an interruption."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from igpt_model import atomic
from igpt_model.differences import claim
from igpt_model.ranges import check_at_least, option
from igpt_model.training.config import TrainConfig
from probekit.cli.console import note, progress
from probekit.runtime.errors import UserError

RECIPE = "Recipe"
FASHION_IMAGES = 3000  # per split of Fashion-MNIST: enough for the verdict, and extraction and probes take minutes
LAYERS = {"features-random.h5": "*[02468]"}  # a subset, since this control changes little from layer to layer
LARGEST_C = 5000.0  # limits the igpt grid: weak penalties are the slowest, and no demo has chosen more than 600
GREEDY_LAYERS = 2  # limit for the demo's greedy choice: each further layer takes as long as the sweep
MOST_WORKERS = 4  # a process takes seconds to start, and there are only about fifty fits


@dataclass(frozen=True)
class DemoRecipe:
    """The demo's training recipe: that of the packaged checkpoint with fewer steps, three minutes on two cores."""

    steps: int = option(800, "Number of updates.", RECIPE)
    batch_size: int = option(32, "Images per update.", RECIPE)
    n_layer: int = option(10, "Number of blocks.", RECIPE)
    n_embd: int = option(48, "Width of the residual stream.", RECIPE)
    lr: float = option(0.003, "Peak learning rate.", RECIPE)
    seed: int = option(0, "Seed of weights, order and splits of the training run.", RECIPE)
    limit: int | None = option(None, "Use at most this many images of each split (for a quick look).", RECIPE)

    def train_config(self) -> TrainConfig:
        """The training run: wandering digits fit 12 x 12 pixels and four grey levels without loss."""
        own: dict[str, Any] = {name: value for name, value in asdict(self).items() if name != "limit"}
        own |= {"n_head": 3, "resolution": 12, "n_colours": 4, "warmup_steps": min(100, self.steps // 5)}
        return TrainConfig(**own, eval_every=300, eval_images=512, checkpoint_every=50, keep_last=2, keep_at=())

    def check(self, on: str, pretrained: bool) -> None:
        """Raise `UserError` for impossible sizes, and for flags that would change nothing."""
        _ = self.train_config()
        if on == "fashion-mnist" and not pretrained:
            raise UserError("--on fashion-mnist needs the checkpoint in the package; add --pretrained.")
        check_at_least(limit=(self.limit, 1))
        idle = [f"--{one.name.replace('_', '-')}" for one in fields(self) if getattr(self, one.name) != one.default]
        if pretrained and set(idle) - {"--limit"}:
            raise UserError(
                f"{', '.join(sorted(set(idle) - {'--limit'}))} would change nothing: --pretrained trains no network; "
                "leave one or the other out."
            )


def demo(
    *,
    out: Path = Path("demo"),
    on: Literal["wandering-digits", "fashion-mnist"] = "wandering-digits",
    pretrained: bool = False,
    recipe: DemoRecipe = DemoRecipe(),
) -> dict[str, Any]:
    """Train a tiny iGPT on wandering digits, probe every layer, and draw the depth curve: minutes on two CPU cores.

    Raw pixels and the same network with random weights are probed for comparison. Resumable, with the same results.

    Parameters
    ----------
    out
        Folder for everything: config, checkpoints, features, results, report.
    on
        Images: scikit-learn's digits at random positions; or, with --pretrained, Fashion-MNIST if it is installed:
        3,000 images of each split, and a model whose accuracy rises and then falls with depth.
    pretrained
        Start from the checkpoint in the package instead of training, which takes under a minute; of the recipe's flags
        only --limit has an effect.
    """
    from probekit.cli.answer import show_curves
    from probekit.cli.train import run_training
    from probekit.datasets import load_dataset
    from probekit.reports import write_report
    from probekit.runtime.workers import worker_processes

    seconds: dict[str, float] = {}
    recipe.check(on, pretrained)  # before the folder is created
    data = load_dataset(on)
    if on == "fashion-mnist":
        recipe = replace(recipe, limit=recipe.limit or FASHION_IMAGES)
    _open(out, {"on": on, "pretrained": True, "limit": recipe.limit} if pretrained else asdict(recipe))
    start = perf_counter()
    if pretrained:
        use_pretrained(out, on)
    else:
        images = load_dataset("wandering-digits-25")
        run_training(recipe.train_config(), images, out, limit=recipe.limit, tensorboard=False)
    seconds["train"], start = perf_counter() - start, perf_counter()
    _extract(out, data, recipe.limit)
    seconds["extract"], start = perf_counter() - start, perf_counter()
    with worker_processes(min(len(os.sched_getaffinity(0)), MOST_WORKERS), _probe, out, shown=False):
        _probe(out)
    seconds["probe"], start = perf_counter() - start, perf_counter()
    page = write_report(out, out / "report")
    show_curves(out)
    seconds["report"] = perf_counter() - start
    note(f"time: {', '.join(f'{name} {value:.0f} s' for name, value in seconds.items())}")
    note(f"report: {page.resolve()}")
    return {"out": str(out), "report": str(page.resolve()), "seconds": seconds}


ENCODERS = {"features.h5": "igpt:{out}", "features-pixels.h5": "pixels:{side}", "features-random.h5": "random:{out}"}
SIDES = {"wandering-digits": 12, "fashion-mnist": 14}  # sides of the models' input images


def _extract(out: Path, data: Any, limit: int | None) -> None:
    from probekit.encoders import load_encoder
    from probekit.features.extract import extract

    with progress("extract", "images") as show:
        for file, spec in ENCODERS.items():
            encoder = load_encoder(spec.format(out=out, side=SIDES[data.name]), data=data)
            extract(encoder, data, out / file, limit=limit, progress=show)


def _probe(out: Path, shown: bool = True) -> None:
    from probekit.evaluate.concat import concat
    from probekit.evaluate.sweep import sweep
    from probekit.features.store import FeatureStore
    from probekit.selection.protocol import get_protocol

    Cs = [C for C in get_protocol("igpt").Cs if C <= LARGEST_C]

    def stage(what: str, unit: str) -> AbstractContextManager[Any]:
        return progress(what, unit) if shown else nullcontext()

    # workers start at opposite ends, so that none waits for the last fit of a file
    for file in ENCODERS if shown else reversed(ENCODERS):
        with stage(f"probe {file.removesuffix('.h5')}", "fits") as show:
            sweep(out / file, out=out, Cs=Cs, layers=LAYERS.get(file), progress=show)
    columns = GREEDY_LAYERS * max(FeatureStore.open(out / "features.h5").widths)
    with stage("concatenate layers", "sets of layers") as show:
        concat(out / "features.h5", out, Cs=Cs, greedy_width=columns, progress=show)


def _open(out: Path, settings: dict[str, Any]) -> None:
    """Write the demo's configuration; refuse a folder with another demo's results or other files."""
    path = out / "demo.json"
    begun = any(out.glob("checkpoints/*[0-9]*")) or any(out.glob("*.h5"))
    if not path.exists() and out.is_dir() and any(not file.name.startswith(".demo.json.") for file in out.iterdir()):
        raise UserError(f"{out} is not empty and does not contain a demo; give another --out.")
    claim(path, settings, lambda _: begun, "a demo")


def pretrained_files(on: str = "wandering-digits") -> Any:
    """The run folder in the package, as an importlib Traversable; raises `UserError` if there is none."""
    folder = files("probekit") / "pretrained" / on
    if not (folder / "checkpoints").is_dir():
        raise UserError("This installation has no checkpoint for --pretrained; leave it out to train a model.")
    return folder


def use_pretrained(out: Path, on: str) -> None:
    """Copy the package's run folder to `out` atomically."""
    source = pretrained_files(on)
    for checkpoint in (source / "checkpoints").iterdir():
        target = out / "checkpoints" / checkpoint.name
        if not target.exists():
            with atomic.new_folder(target) as partial:
                for file in checkpoint.iterdir():
                    (partial / file.name).write_bytes(file.read_bytes())
    for name in ("config.json", "metrics.jsonl"):
        if (source / name).is_file():
            atomic.write_bytes(out / name, (source / name).read_bytes())
