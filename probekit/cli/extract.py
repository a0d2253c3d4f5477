"""`probekit extract`: every layer's pooled features of a data set into one feature file."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from probekit.cli.console import say
from probekit.cli.encoder_options import EncoderOptions
from probekit.cli.progress import progress


def extract(
    encoder: str,
    dataset: str,
    /,
    *,
    out: Path,
    root: Path | None = None,
    test: tuple[str, ...] = (),
    splits: tuple[str, ...] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    skip_corrupt: bool = False,
    exif: Literal["apply", "ignore"] | None = None,
    value_range: tuple[float, float] | None = None,
    store: Literal["float32", "float16"] = "float32",
    options: Annotated[EncoderOptions, Parameter(name="*")] = EncoderOptions(),  # noqa: B008  (frozen)
) -> None:
    """Write every layer's pooled features of a data set to one feature file. Run again after a kill it goes on.

    Parameters
    ----------
    encoder
        igpt:RUN, igpt:RUN@STEP, hf:NAME, timm:NAME, torch:package.module:function, pixels, histogram, random:PRESET,
        random:RUN.
    dataset
        A name of `probekit datasets`, a folder of images, or an archive.
    out
        The feature file (HDF5).
    root
        Where the data set lies, for those that are not embedded.
    test
        A further test set, repeatable: --test fog=CIFAR-10-C#corruption=fog --test v2=FOLDER. Its classes are those of
        the data set, by name or number, or by a map: NAME=DATASET#classes=MAP.csv.
    splits
        Splits to extract, for example --splits train --splits test; all unless given.
    limit
        At most this many images of each split, classes in proportion.
    batch_size
        Images a batch; 128, or what the file was begun with.
    workers
        Processes that decode and prepare images; 0: this one does.
    skip_corrupt
        Leave out image files that cannot be decoded; they are listed here and in the file. Without it, the first
        one is an error.
    exif
        Image files: turn pictures as their EXIF orientation says (apply, unless given) or read them as stored (ignore).
    value_range
        Image files of floats or of 16 or 32 bits: what is black and what is white, for example --value-range 0 1.
    store
        How features are stored.
    """
    from probekit import extract as extract_features
    from probekit import load_dataset, load_encoder
    from probekit.datasets.corrupt import skipped_lines
    from probekit.datasets.shifted import with_tests, written_tests
    from probekit.encoders.decisions import decision_lines

    decoding = {"exif": exif, "value_range": value_range}
    given = {name: value for name, value in decoding.items() if value is not None}
    data = load_dataset(dataset, root=root, skip_corrupt=skip_corrupt, **given)
    if test:
        data = with_tests(data, *written_tests(test, root, skip_corrupt))
    loaded = load_encoder(encoder, data=data, **options.given())
    for line in decision_lines(loaded):
        say(line)
    with progress("extract", "images") as show:
        features = extract_features(
            loaded,
            data,
            out,
            splits=splits,
            batch_size=batch_size,
            workers=workers,
            dtype=store,
            limit=limit,
            progress=show,
        )
    for origin in (features.dataset, *features.dataset.get("tests", {}).values()):
        for line in skipped_lines(origin):
            say(line, "yellow")
    widths = sorted(set(features.widths))
    rows = ", ".join(f"{split} {len(features.labels(split)):,}" for split in features.splits)
    say(
        f"{out}: {len(features.layers)} layers of width {', '.join(map(str, widths))}, rows {rows} "
        f"(next: probekit sweep {out})"
    )
