"""`probekit verify`: check a feature file for damage, wrong order, altered provenance and suspicious contents."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from probekit.cli.answer import present
from probekit.cli.console import note, say
from probekit.cli.plot import write_figure
from probekit.runtime.errors import UserError
from probekit.runtime.escape import three_figures


def verify(
    file: Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    near_duplicates: bool = False,
    layer: str | None = None,
    threshold: float | None = None,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Check a feature file. Errors give exit code 2, warnings 0.

    Parameters
    ----------
    file
        The feature file.
    data
        A data set to compare labels, row ids, image hashes and provenance with.
    root
        Folder of that data set, if it is not embedded.
    near_duplicates
        Also look for near-duplicates of training images among the test images: in pixels with --data, else in features.
        Reports then give accuracy with and without them.
    layer
        The layer used for that search; by default the middle one.
    threshold
        Largest distance of a near-duplicate: in pixels one minus the correlation of downscaled grey images (default
        0.04), in features a share of the median distance (default 0.1).
    picture
        Draw the nearest pairs to this SVG, PNG or PDF file (needs --data).
    """
    from probekit.datasets import load_dataset
    from probekit.features.verify import skipped_corrupt
    from probekit.features.verify import verify as verify_file

    loaded = None
    if data is not None:
        # rows left out at extraction are also left out of the comparison
        loaded = load_dataset(data, root=root, skip_corrupt=skipped_corrupt(file))
    report = verify_file(file, loaded)
    for warning in report.warnings:
        say(f"warning: {warning}", "yellow")
    for error in report.errors:
        say(f"error: {error}", "red")
    found: dict[str, Any] = {"file": str(file), "errors": report.errors, "warnings": report.warnings}
    if report.errors:
        present(found)
        other = "give --data the data set it was made from, " if any("other data" in e for e in report.errors) else ""
        raise UserError(f"{file} has the errors listed above: {other}extract it again, or restore a copy.")
    if near_duplicates:
        found["near_duplicates"] = look_for_near_duplicates(file, loaded, layer, threshold, picture)
    say(f"{file}: no errors, {len(report.warnings) or 'no'} warning{'s' * (len(report.warnings) != 1)}.")
    return found


def look_for_near_duplicates(
    file: Path, data: Any, layer: str | None, threshold: float | None, picture: Path | None
) -> list[int]:
    """Find, count and draw near-duplicates of test images in train, and write their row ids next to the file."""
    from probekit.features.duplicates import near_duplicates_in_features, near_duplicates_in_pixels, plot_pairs
    from probekit.features.store import FeatureStore
    from probekit.results.subset_metrics import RowSet, row_set_path

    store = FeatureStore.open(file)
    if picture is not None and data is None:
        raise UserError("--picture needs the images; give --data.")
    given: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    if data is not None and layer is None:
        limit = store.dataset.get("limit")
        data = replace(
            data, splits={name: data.splits[name].limit(limit) for name in store.splits if name in data.splits}
        )
        found = near_duplicates_in_pixels(data, **given)
    else:
        found = near_duplicates_in_features(store, len(store.layers) // 2 if layer is None else layer, **given)
    ids, matched = store.row_ids(found.query_split)[found.queries], store.row_ids(found.match_split)[found.matches]
    pairs = list(zip(ids.tolist(), matched.tolist(), found.distances.tolist(), strict=True))
    how = {"space": found.space, **given, "feature_id": store.id, "match": found.match_split, "pairs": pairs}
    rows = RowSet("near-duplicates", store.dataset.get("name", ""), found.query_split, tuple(sorted(ids.tolist())), how)
    rows.save(row_set_path(file))
    total = len(store.labels(found.query_split))
    share = three_figures(100 * len(ids) / total)
    say(
        f"{len(ids)} of {total:,} {found.query_split} images ({share} %) are near one of "
        f"{found.match_split} ({found.space}); row ids: {row_set_path(file)}"
    )
    if picture is not None:
        write_figure(plot_pairs(data, found), picture)
        note(f"wrote {picture}")
    return sorted(ids.tolist())
