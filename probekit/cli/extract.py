"""`probekit extract`: the library's `extract`, with the flags of an encoder."""

from pathlib import Path
from typing import Any, Literal

from probekit.cli.console import detail
from probekit.cli.encoder_options import EncoderOptions

INHERITS = {"extract": "probekit.features.extract:extract"}


def extract(
    encoder: str,
    dataset: str,
    out: Path,
    root: Path | None = None,
    test: tuple[str, ...] = (),
    skip_corrupt: bool = False,
    exif: Literal["apply", "ignore"] | None = None,
    value_range: tuple[float, float] | None = None,
    store: Literal["float32", "float16"] = "float32",
    progress: Any = None,
    options: EncoderOptions = EncoderOptions(),  # noqa: B008  (frozen)
    **settings: Any,
) -> Any:
    """Write every layer's pooled features of a data set to one feature file. Resumable.

    Parameters
    ----------
    encoder : str
        igpt:RUN, igpt:RUN@STEP, hf:NAME, timm:NAME, torch:package.module:function, pixels, histogram, random:PRESET,
        random:RUN; tokens:ENCODER keeps all positions.
    dataset : str
        A name of `probekit datasets`, a folder of images, or an archive.
    out : Path
        The feature file (HDF5).
    root : Path
        Folder of the data set, for those that are not embedded.
    test : tuple of str
        An additional test set as NAME=DATASET, repeatable: --test fog=CIFAR-10-C#corruption=fog --test v2=FOLDER. Its
        classes are those of the data set, by name or number, or by a map: NAME=DATASET#classes=MAP.csv.
    skip_corrupt : bool
        Leave out image files that cannot be decoded; they are listed here and in the file. Without it, the first one
        is an error.
    exif : str
        Image files: rotate images by their EXIF orientation (apply, the default), or keep them as stored (ignore).
    value_range : tuple of float
        Floating-point, 16-bit or 32-bit image files: the values of black and white, for example --value-range 0 1.
    store : str
        Precision of the stored features.
    """
    from probekit.datasets import load_dataset
    from probekit.datasets.catalogue import written_tests
    from probekit.datasets.shifted import with_tests

    decoding: dict[str, Any] = {"exif": exif, "value_range": value_range}
    given = {name: value for name, value in decoding.items() if value is not None}
    data = load_dataset(dataset, root=root, skip_corrupt=skip_corrupt, **given)
    if test:
        data = with_tests(data, *written_tests(test, root, skip_corrupt, given))

    # imported only now, so that errors in the data set are reported without waiting for PyTorch
    from probekit.encoders import load_encoder
    from probekit.encoders.decisions import decision_lines
    from probekit.features.extract import extract as extract_features

    loaded = load_encoder(encoder, data=data, **options.given())
    for line in decision_lines(loaded):
        detail(line)
    return extract_features(loaded, data, out, dtype=store, progress=progress, **settings)
