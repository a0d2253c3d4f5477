"""The readers that `fuzz.py` gives damaged files to: how a whole input is made, and how it is read."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
MODEL = {"n_layer": 1, "n_embd": 8, "n_head": 1, "resolution": 4, "n_colours": 4}


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes
    ----------
    make : writes a whole input into a folder
    use : reads what is in the folder, as far as the package reads it
    damage : patterns of the files that are damaged, one at a time
    share : of the inputs of a campaign; less for slow readers
    """

    name: str
    make: Callable[[Path], object]
    use: Callable[[Path], object]
    damage: tuple[str, ...]
    share: float = 1.0


def refit_manifests(folder: Path) -> None:
    """Make the manifests of checkpoints fit again, so that damage reaches the readers behind them."""
    from igpt_model.hashing import hash_file

    for manifest in folder.rglob("manifest.json"):
        others = [f for f in manifest.parent.rglob("*") if f.is_file() and f != manifest]
        listed = {str(f.relative_to(manifest.parent)): hash_file(f) for f in others}
        manifest.write_text(json.dumps(listed))


# a feature file


def _features(folder: Path) -> None:
    from probekit.features.memory_store import write_arrays

    rng = np.random.default_rng(0)
    labels = {split: np.arange(n) % 3 for split, n in (("train", 24), ("test", 12))}
    splits = {s: ({f"{k:02d}": rng.normal(size=(len(y), 3)) for k in range(2)}, y) for s, y in labels.items()}
    write_arrays(folder / "f.h5", splits, {"name": "made"}, {"name": "made"}, classes=("a", "b", "c"), batch_size=8)


def _use_features(folder: Path) -> None:
    from igpt_model.errors import UserError
    from probekit.features.inspect import inspect
    from probekit.features.store import FeatureStore
    from probekit.features.verify import verify

    report = verify(folder / "f.h5")
    try:
        store = FeatureStore.open(folder / "f.h5")
        for split in store.splits:
            store.read(split, 0)
            store.row_ids(split)
    except UserError:
        assert not report.ok, "opened with an error, and verify found none"
        raise
    inspect(store)


def _compressed(folder: Path) -> None:
    from probekit.features.compress import compress

    _features(folder)
    compress(folder / "f.h5")


class _Pixels:
    """An encoder of two layers, mean colours."""

    layers, widths, provenance = ("0", "1"), (3, 3), {"name": "made"}

    def prepare(self, image):
        return image

    def __call__(self, images, row_ids):
        import torch

        X = torch.from_numpy(np.ascontiguousarray(images)).float().mean((1, 2))
        return [X, X + 1]


def _sharded(folder: Path) -> None:
    from igpt_model.process_group import Ranks
    from probekit.datasets import load_dataset
    from probekit.features.extract import declare
    from probekit.features.shards import join, shard_path, share
    from probekit.features.writer import FeatureWriter, create_skeleton

    images = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3), dtype=np.uint8)
    data = load_dataset((images, np.arange(40) % 3))
    encoder, parts = _Pixels(), {"train": data.splits["train"]}
    whole = declare(encoder, data, parts, 4, "float32", None)
    for rank in range(2):
        ranks = Ranks(rank, 2)
        own, first = share(parts, 4, ranks)
        about = {"rank": rank, "world": 2, "splits": whole.splits, "first": first}
        header = replace(whole, splits={name: len(part) for name, part in own.items()}, shard=about)
        path = shard_path(folder / "f.h5", ranks)
        rows = own["train"]
        create_skeleton(path, header, {"train": rows.labels}, {"train": rows.row_ids}, data.classes)
        with FeatureWriter(path) as writer:
            for split, block in writer.todo():
                batch = header.rows(split, block)
                X = encoder(np.stack(rows.images(batch.start, batch.stop)), None)
                writer.write(split, block, rows.image_hashes[batch], [x.numpy() for x in X])
            writer.finish()
    join(folder / "f.h5", 2)


# a run


@cache
def _run_files() -> dict[str, bytes]:
    import tempfile

    from igpt_model import TrainConfig, train

    with tempfile.TemporaryDirectory() as scratch:
        images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
        settings = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "warmup_steps": 1, "log_every": 1, "threads": 1}
        list(train(TrainConfig(**MODEL, **settings), images, images, Path(scratch)))
        return {str(f.relative_to(scratch)): f.read_bytes() for f in Path(scratch).rglob("*") if f.is_file()}


def _run(folder: Path) -> None:
    for name, content in _run_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _use_run(folder: Path) -> None:
    from igpt_model import TrainConfig, train
    from igpt_model.training.checkpoint import latest_checkpoint, load_checkpoint

    loaded = load_checkpoint(latest_checkpoint(folder))
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    settings = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "warmup_steps": 1, "log_every": 1, "threads": 1}
    list(train(TrainConfig(**MODEL, **settings), images, images, folder))
    assert loaded.config.n_layer == 1


# results


@cache
def _results_files() -> dict[str, bytes]:
    import tempfile

    from probekit.evaluate.sweep import sweep

    with tempfile.TemporaryDirectory() as scratch:
        _features(Path(scratch))
        sweep(Path(scratch) / "f.h5", scratch, Cs=[0.1, 1.0])
        keep = [f for f in Path(scratch).rglob("*") if f.suffix in (".jsonl", ".safetensors", ".h5")]
        return {str(f.relative_to(scratch)): f.read_bytes() for f in keep}


def _results(folder: Path) -> None:
    for name, content in _results_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _use_results(folder: Path) -> None:
    from probekit.reports.panels import build_panels, collect_records
    from probekit.reports.tables import FORMATS, layer_table
    from probekit.results.results import Results

    results = Results(folder)
    results.frame()
    panels = build_panels(collect_records([folder]))
    for panel in panels:
        for form in FORMATS:
            layer_table(panel).text(form)
    for series in results.series:
        results.verdict(series)


def _use_page(folder: Path) -> None:
    from probekit.reports import write_report

    write_report(folder, folder / "report")


def _use_probe(folder: Path) -> None:
    from probekit.results.predictions import row_predictions
    from probekit.results.results import Results

    for record in Results(folder):
        row_predictions(record)


def _probe(folder: Path) -> None:
    from probekit import LinearProbe

    rng = np.random.default_rng(0)
    LinearProbe().fit(rng.normal(size=(30, 4)), np.arange(30) % 3).save(folder / "probe.safetensors")


def _use_linear(folder: Path) -> None:
    from probekit import LinearProbe

    LinearProbe.load(folder / "probe.safetensors").predict(np.zeros((2, 4)))


def _use_journal(folder: Path) -> None:
    from probekit.results.journal import Journal

    journal = Journal(folder / "results.jsonl")
    with journal.claim("a" * 32) as ours:
        if ours:
            journal.append({"key": "a" * 32})
    assert any(key == "a" * 32 for key in journal.keys())  # noqa: SIM118 (a method)


# palettes, pictures, data sets


def _palettes(folder: Path) -> None:
    from igpt_model import Palette

    palette = Palette.rgb_grid(8)
    palette.save(folder / "p.safetensors")
    np.save(folder / "p.npy", palette.centres_V3)


def _use_palettes(folder: Path) -> None:
    from igpt_model import Palette

    for name in ("p.safetensors", "p.npy"):
        Palette.load(folder / name).encode(np.zeros((1, 2, 2, 3), np.uint8))


def _pictures() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    found = []
    for number, form in enumerate(("png", "jpeg", "bmp", "gif", "png", "jpeg")):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(buffer, form)
        found.append((f"train/{'ab'[number % 2]}/{number}.{form}", buffer.getvalue()))
    return found


def _folder(folder: Path) -> None:
    for name, content in _pictures():
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_bytes(content)


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _pictures():
            archive.writestr(name, content)


def _tar(folder: Path) -> None:
    import tarfile

    with tarfile.open(folder / "train.tar", "w") as archive:
        for number, (_, content) in enumerate(_pictures()):
            for name, part in ((f"{number}.png", content), (f"{number}.cls", str(number % 2).encode())):
                about = tarfile.TarInfo(name)
                about.size = len(part)
                archive.addfile(about, io.BytesIO(part))


def _csv(folder: Path) -> None:
    _folder(folder)
    lines = ["path,label", *(f"data/{name},{'ab'[number % 2]}" for number, (name, _) in enumerate(_pictures()))]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


def _npz(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", train_images=images, train_labels=np.arange(8) % 2)


def _read_all(name: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        from probekit.datasets import load_dataset

        data = load_dataset(str(folder / name))
        for split in data.splits:
            part = data.splits[split]
            part.images(0, len(part))

    return use


def _idx(folder: Path) -> None:
    import gzip
    import struct

    content = struct.pack(">HBB3I", 0, 8, 3, 4, 3, 3) + bytes(36)
    (folder / "images-idx3-ubyte").write_bytes(content)
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(content))


def _use_idx(folder: Path) -> None:
    from probekit.datasets.published import read_idx

    for name in ("images-idx3-ubyte", "images-idx3-ubyte.gz"):
        read_idx(folder / name)


def _cifar(folder: Path) -> None:
    batch = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2], "filenames": ["a"] * 3}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "data_batch_1.bin").write_bytes(bytes(3 * 3073))


def _use_cifar(folder: Path) -> None:
    from igpt_model.checked_json import read_bytes
    from probekit.datasets.published import from_binary, from_pickle

    from_pickle(read_bytes(folder / "data_batch_1"), "data_batch_1", 32, "labels")
    from_binary(read_bytes(folder / "data_batch_1.bin"), "data_batch_1.bin", 1, 0)


# weights and features of others


def _arrays(folder: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(6, 3)).astype(np.float32), np.arange(6) % 2
    np.save(folder / "x.npy", X)
    np.savez(folder / "x.npz", a=X, labels=y)
    torch.save({"a": torch.from_numpy(X), "labels": torch.from_numpy(y)}, folder / "x.pt")
    (folder / "x.csv").write_text("a,b,label\n" + "".join(f"{k}.5,{-k},{k % 2}\n" for k in range(6)))
    np.save(folder / "y.npy", y)


def _use_arrays(folder: Path) -> None:
    from igpt_model.errors import UserError
    from probekit.features.importing import import_features

    problem = None
    for name in ("x.npz", "x.pt", "x.csv", "x.npy"):
        labels = folder / "y.npy" if name == "x.npy" else None
        try:
            import_features(folder / f"{name}.h5", folder / name, train_labels=labels)
        except UserError as error:
            problem = error
    if problem is not None:
        raise problem


def _huggingface(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from igpt_model import IGPT, ModelConfig, Palette

    igpt = IGPT(ModelConfig(1, 8, 1, 4, 16), seed=0)
    state = {
        "transformer.wte.weight": torch.cat([igpt.state_dict()["wte.weight"], igpt.state_dict()["sos"][None]]),
        "transformer.wpe.weight": igpt.state_dict()["wpe.weight"],
        "transformer.ln_f.weight": igpt.state_dict()["ln_f.g"],
    }
    for name, value in igpt.state_dict().items():
        if name.startswith("h."):
            key = f"transformer.{name.removesuffix('.g') + '.weight' if name.endswith('.g') else name}"
            state[key] = value if name.endswith(".g") else value.T.contiguous()
            if not name.endswith(".g"):
                state[key.replace(".weight", ".bias")] = value.new_zeros(value.shape[0])
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"n_head": 1}))
    processor = {"clusters": Palette.rgb_grid(4).centres_V3.tolist(), "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _use_huggingface(folder: Path) -> None:
    from igpt_model.convert.huggingface import from_pretrained_folder

    from_pretrained_folder(folder)


def _bundle(folder: Path) -> None:
    source = ROOT / "tests" / "igpt_model" / "convert" / "tensorflow"
    for file in source.glob("model.ckpt*"):
        (folder / file.name).write_bytes(file.read_bytes())


def _use_bundle(folder: Path) -> None:
    from igpt_model.convert.tensor_bundle import read_bundle

    read_bundle(folder / "model.ckpt-131000")


def _parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"bytes": content, "path": None} for name, content in _pictures() if name.endswith(".png")] * 3
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": rows, "label": [k % 2 for k in range(len(rows))]}).replace_schema_metadata(metadata)
    parquet.write_table(table, folder / "train.parquet", row_group_size=4)


def _use_image(folder: Path) -> None:
    from igpt_model.checked_json import read_bytes
    from probekit.datasets.images import decode

    for name in ("a.png", "a.jpeg", "a.tiff", "a.webp", "a.gif", "a.bmp"):
        decode(read_bytes(folder / name), name)


def _images(folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    for form in ("png", "jpeg", "tiff", "webp", "gif", "bmp"):
        picture.save(folder / f"a.{form}")


def _class_records(folder: Path) -> None:
    batch = {"data": np.zeros((3, 3 * 64), np.uint8), "labels": [1, 2, 3], "mean": np.zeros(3 * 64)}
    (folder / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))


def _use_class_records(folder: Path) -> None:
    from igpt_model.checked_json import read_bytes
    from probekit.datasets.restricted_pickle import loads

    for file in folder.iterdir():
        loads(read_bytes(file), str(file))


def _config(folder: Path) -> None:
    settings = {"steps": 5, "batch-size": 4, "lr": 0.001, "model": "tiny", "limit": 30, "tensorboard": False}
    (folder / "a.json").write_text(json.dumps({"train": settings | {"dataset": "digits", "out": "x"}}))
    (folder / "b.yaml").write_text(
        "dataset: digits\nout: x\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in settings.items())
    )
    flags = {"encoders": {"a": "pixels"}, "on": ["b=digits"], "test": {}, "limit": 10, "seeds": 1, "protocol": "igpt"}
    study = {"study": flags | {"Cs": [1.0, 2.0]}, "protocol": {"name": "igpt", "Cs": [1.0, 2.0]}}
    (folder / "c.json").write_text(json.dumps(study))
    sweep = "features: f.h5\nout: res\nCs: [0.1, 1]\nlayers: ['*0', a]\nseeds: 2\nworkers: 1\nprotocol: igpt\n"
    (folder / "d.yaml").write_text(sweep)


def _use_config(folder: Path) -> None:
    """As `main` does, but the verb itself, which the tests of the command line run."""
    from cyclopts import CycloptsError

    from igpt_model.errors import UserError
    from probekit.cli.main import app
    from probekit.cli.usage import prepared, usage_sentence

    problem: Exception | None = None
    for verb, name in (("train", "a.json"), ("train", "b.yaml"), ("study", "c.json"), ("sweep", "d.yaml")):
        words = [verb, *(["--out", "x"] if verb == "study" else []), "--config", str(folder / name)]
        try:
            app.parse_args(prepared(app, words), exit_on_error=False, print_error=False)
        except UserError as error:
            problem = error
        except CycloptsError as error:
            problem = UserError(usage_sentence(error, app, words))
    if problem is not None:
        raise problem


TARGETS = (
    Target("feature file", _features, _use_features, ("f.h5",)),
    Target("compressed feature file", _compressed, _use_features, ("f.h5",)),
    Target("sharded feature file", _sharded, _use_features, ("*.h5",)),
    Target("run", _run, _use_run, ("checkpoints/*/*", "*.json*"), 0.1),
    Target("results", _results, _use_results, ("results.jsonl",), 0.5),
    Target("report", _results, _use_page, ("results.jsonl",), 0.02),
    Target("journal", _results, _use_journal, ("results.jsonl",)),
    Target("predictions", _results, _use_probe, ("probes/*.safetensors",)),
    Target("linear probe", _probe, _use_linear, ("*.safetensors",)),
    Target("palette", _palettes, _use_palettes, ("p.*",)),
    Target("image folder", _folder, _read_all("data"), ("data/train/*/*",)),
    Target("zip archive", _zip, _read_all("data.zip"), ("data.zip",)),
    Target("tar archive", _tar, _read_all("train.tar"), ("train.tar",)),
    Target("csv list", _csv, _read_all("list.csv"), ("list.csv",)),
    Target("npz data set", _npz, _read_all("data.npz"), ("data.npz",)),
    Target("parquet", _parquet, _read_all("train.parquet"), ("train.parquet",)),
    Target("picture", _images, _use_image, ("a.*",)),
    Target("pickle of a data set", _class_records, _use_class_records, ("train*",)),
    Target("config", _config, _use_config, ("?.*",), 0.3),
    Target("idx", _idx, _use_idx, ("images*",)),
    Target("cifar batches", _cifar, _use_cifar, ("data_batch*",)),
    Target("imported arrays", _arrays, _use_arrays, ("?.*",), 0.2),
    Target("hugging face folder", _huggingface, _use_huggingface, ("*",)),
    Target("tensor bundle", _bundle, _use_bundle, ("*",)),
)
