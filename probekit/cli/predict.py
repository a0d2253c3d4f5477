"""`probekit predict`: a stored probe on image files."""

from pathlib import Path
from typing import Any

from probekit.cli.console import say
from probekit.cli.encoder_options import EncoderOptions
from probekit.cli.plot import check_ending


def predict(
    probe: Path,
    images: tuple[Path, ...],
    *,
    series: str | None = None,
    encoder: str | None = None,
    out: Path | None = None,
    batch_size: int = 128,
    options: EncoderOptions = EncoderOptions(),  # noqa: B008  (frozen)
) -> list[dict[str, Any]]:
    """Classify image files with a probe stored by `probekit sweep` or `probekit concat`.

    Parameters
    ----------
    probe
        RESULTS/probes/KEY.safetensors, with results.jsonl next to that folder. Or RESULTS, for the
        layer chosen on held-out rows.
    images
        Image files, or folders of them.
    series
        Series of RESULTS, if it contains several.
    encoder
        The encoder of the probe's features, as in `probekit extract`; by default that of the record. An encoder with
        different weights, palette, norm or preparation is refused.
    out
        CSV file to write; by default the table is printed.
    batch_size
        Images per batch.
    """
    from igpt_model import atomic
    from probekit.encoders import load_encoder
    from probekit.evaluate.predict import encoder_of, find_record
    from probekit.evaluate.predict import predict as predict_images
    from probekit.runtime.escape import csv_text

    if out is not None:
        check_ending(out, ("csv",))
    record = find_record(probe, series)  # before the model is loaded, to report a wrong path at once
    spec, settings = (encoder, {}) if encoder is not None else encoder_of(record)
    frame = predict_images(record, images, load_encoder(spec, **(settings | options.given())), batch_size)
    text = csv_text(frame, float_format="%.4f")
    if out is None:
        for line in text.splitlines():
            say(line)
    else:
        atomic.write_text(out, text)
        say(f"{out}: {len(frame):,} prediction{'s' * (len(frame) != 1)}")
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
