"""A probe's prediction from several masks of the same test images: the modal class (paper, appendix A, BERT models).

The probe was fitted on features under one mask an image; here it reads feature files of the same encoder with other
mask seeds.

M masks, N test rows, D features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.differences import differ
from igpt_model.objectives import modal_vote
from probekit.evaluate.predict import load_fitted
from probekit.features.lazy_features import read_features
from probekit.features.store import FeatureStore
from probekit.results.metrics import wilson_interval
from probekit.results.paired import PairedDifference
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.runtime.errors import UserError

# entries that may differ between the files: the masks, and where features were computed
_FREE = ("input", "device", "dtype", "precision", "checkpoint")


@dataclass(frozen=True)
class MaskEnsemble:
    """Accuracy with each mask and with the combined prediction, as fractions of the test rows.

    Attributes
    ----------
    single : (M,) accuracy under each mask, the record's own first
    accuracy, low, high : of the modal prediction, with Wilson's 95 % interval
    gain : of the ensemble over the record's own mask
    predictions : int64 (N,)
    """

    single: np.ndarray
    accuracy: float
    low: float
    high: float
    gain: PairedDifference
    predictions: np.ndarray


def mask_ensemble(record: Record, stores: Sequence[FeatureStore | str | Path], seed: int = 0) -> MaskEnsemble:
    """Predict the test rows of a record under every mask and take the modal class; ties are broken by (seed, row id).

    Parameters
    ----------
    record : read from disk, with its probe file
        Its own mask is the first one.
    stores : feature files of the same encoder and data, each extracted with another `--seed`; the test split suffices

    Raises
    ------
    UserError
        A file is of another encoder, has other test rows, or has the same mask as another one.
    """
    own = row_predictions(record)
    fitted = load_fitted(record)
    predicted, inputs = [own.predictions], [record.encoder.get("input")]
    for store in stores:
        opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
        _check_same(record, opened, own.row_ids, inputs)
        inputs.append(opened.encoder.get("input"))
        X_ND = read_features(opened, "test", record.layers, normalize=bool(record.protocol.get("normalize")))
        predicted.append(fitted.classes[fitted.predict_log_proba(X_ND).argmax(1)])
    predicted_MN = np.stack(predicted)
    voted = modal_vote(predicted_MN, own.row_ids, seed)
    right = voted == own.labels
    return MaskEnsemble(
        (predicted_MN == own.labels).mean(1),
        float(right.mean()),
        *wilson_interval(int(right.sum()), len(right)),
        PairedDifference.from_rows(right, own.correct),
        voted,
    )


def _check_same(record: Record, store: FeatureStore, row_ids_N: np.ndarray, inputs: list[Any]) -> None:
    theirs, ours = ({k: v for k, v in of.items() if k not in _FREE} for of in (store.encoder, record.encoder))
    if differing := differ(theirs, ours):
        raise UserError(
            f"{store.path} is not of the probe's encoder ({differing}); extract it again with another --seed only."
        )
    if store.encoder.get("input") in inputs:
        raise UserError(
            f"{store.path} has the same masks as another one ({inputs[-1]}); extract it with another --seed."
        )
    if not np.array_equal(store.row_ids("test"), row_ids_N):
        raise UserError(f"{store.path} has other test rows than the record; extract the same data set and --limit.")
