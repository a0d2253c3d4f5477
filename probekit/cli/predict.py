"""`probekit predict`: a stored probe on image files."""

from pathlib import Path
from typing import Any

from probekit.cli.console import say
from probekit.cli.encoder_options import EncoderOptions


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
    """Class and probability of each image file, by a probe that a sweep or concatenation has stored.

    Parameters
    ----------
    probe
        RESULTS/probes/KEY.safetensors; results.jsonl beside that folder says what the probe reads. Or RESULTS, for the
        layer chosen on held-out rows.
    images
        Image files, or folders of them.
    series
        With RESULTS: which series, where there are several.
    encoder
        The encoder of the probe's features, as `probekit extract` takes it; the record's own unless given. One with
        other weights, palette, norm or preparation than the probe was fitted with is refused.
    out
        CSV file to write; printed unless given.
    batch_size
        Images a batch.
    """
    from igpt_model import atomic
    from probekit import load_encoder
    from probekit.evaluate.predict import encoder_of, find_record
    from probekit.evaluate.predict import predict as predict_images
    from probekit.reports.tables import csv_text

    record = find_record(probe, series)  # a wrong path is told before a model is loaded
    spec, settings = (encoder, {}) if encoder is not None else encoder_of(record)
    frame = predict_images(record, images, load_encoder(spec, **(settings | options.given())), batch_size)
    text = csv_text(frame, float_format="%.4f")
    if out is None:
        say(text.rstrip())
    else:
        atomic.write_text(out, text)
        say(f"{out}: {len(frame):,} predictions")
    return frame.to_dict("records")
