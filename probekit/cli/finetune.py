"""`probekit finetune`: train a classifier from a pre-trained run, and test it once at the end."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model import atomic
from igpt_model.training.config import FinetuneConfig
from probekit.cli.console import is_rank0, note, progress, say
from probekit.cli.train import PreparedImages, Printer, tensorboard_writer, training_images
from probekit.datasets import Dataset, load_dataset

TEST_FILE = "test.json"
PREDICTIONS_FILE = "test_predictions.safetensors"


def finetune(
    run: str,
    dataset: str,
    out: Path,
    root: Path | None = None,
    limit: int | None = None,
    test: bool = True,
    tensorboard: bool = True,
    config: FinetuneConfig = FinetuneConfig(),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    """Train a pre-trained iGPT with a linear head on labelled images. Resumable.

    Parameters
    ----------
    run : str
        The pre-trained run: a run folder, RUN@STEP, or a checkpoint folder.
    dataset : str
        A name of `probekit datasets`, a folder of images, or an archive.
    out : Path
        The run folder of the classifier; features are extracted from it as igpt:OUT.
    root : Path
        Folder of the data set, for those that are not embedded.
    limit : int
        Use at most this many images of each split, stratified by class.
    test : bool
        Measure the best checkpoint on the test split at the end, once.
    tensorboard : bool
        Write TensorBoard events next to metrics.jsonl.
    """
    data = load_dataset(dataset, root=root)
    answer = {"run": str(out), **run_finetuning(config, run, data, out, limit=limit, tensorboard=tensorboard)}
    note(f"fine-tuned: {out}")
    if test and is_rank0():  # only one of the processes started by torchrun
        found = measure_on_test(config, data, out, limit=limit)
        interval = f"(95 % interval {100 * found['top1_low']:.1f} to {100 * found['top1_high']:.1f})"
        say(f"test accuracy of step {found['step']}: {100 * found['top1']:.1f} % {interval}, {found['n_test']:,} rows")
        answer["test"] = found
    return answer


def run_finetuning(
    config: FinetuneConfig, run: str, data: Dataset, out: Path, *, limit: int | None = None, tensorboard: bool = True
) -> dict[str, Any]:
    """Fine-tune on the train split of `data`, with early stopping on val; return the last record."""
    from igpt_model.training.checkpoint import load_checkpoint
    from igpt_model.training.finetune import Labelled
    from igpt_model.training.finetune import finetune as fine_tune
    from probekit.encoders.igpt import find_checkpoint

    source = load_checkpoint(find_checkpoint(run))
    transform = config.transform(source.transform)
    train, val = (data.splits[name].limit(limit) for name in ("train", "val"))
    provenance = {**data.provenance, "limit": limit}
    record: dict[str, Any] = {}
    with tensorboard_writer(out, tensorboard and is_rank0()) as write, progress("fine-tune", "") as stages:
        print_record = Printer("fine-tuning", partial(stages, "fine-tune", "steps"))
        images = training_images(train, transform, partial(stages, "prepare train", "images"))
        parts = (
            Labelled(images, train.labels),
            Labelled(PreparedImages(val, transform, partial(stages, "prepare val", "images")), val.labels),
        )
        for record in fine_tune(config, source, *parts, data.classes, out, provenance):
            write(record)
            print_record(record)
    return record


def measure_on_test(config: FinetuneConfig, data: Dataset, out: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Measure the best checkpoint on the test split; write `test.json` and the predictions of every row."""
    from igpt_model.classifier import load_classifier, predict_proba
    from igpt_model.objectives import modal_vote
    from probekit.results.metrics import wilson_interval
    from probekit.results.predictions import RowPredictions, save_probe

    tuned = load_classifier(out, config.device)
    split = data.splits["test"].limit(limit)
    with progress("prepare test", "images") as show:
        tokens = tuned.palette.encode(PreparedImages(split, tuned.transform, show).all)
    proba_MNK = predict_proba(tuned.classifier, tokens, split.row_ids, config.eval_masks, config.seed)
    predicted = modal_vote(proba_MNK.argmax(-1), split.row_ids, config.seed)
    right = int((predicted == split.labels).sum())
    low, high = wilson_interval(right, len(split))
    kinds = np.arange(len(tuned.classes))
    log_proba = np.log(np.maximum(proba_MNK.mean(0), 1e-30)).astype(np.float32)
    rows = RowPredictions(split.row_ids, split.labels, predicted, log_proba, kinds)
    weight = tuned.classifier.clf.weight.detach().cpu().numpy()
    arrays = {"classes": kinds, "coef": weight, "intercept": np.zeros(len(weight))}
    save_probe(out / PREDICTIONS_FILE, arrays, rows)
    found = {
        "step": tuned.step,
        "val_accuracy": tuned.val_accuracy,
        "top1": right / len(split),
        "top1_low": low,
        "top1_high": high,
        "n_test": len(split),
        "n_masks": len(proba_MNK),
        "dataset": data.name,
        "limit": limit,
        "finetune": config.to_dict(),
        "source": tuned.provenance["finetune"]["source"],
    }
    atomic.write_json(out / TEST_FILE, found)
    return found
