import json
import signal

import numpy as np
import pytest
import torch

from igpt_model import ImageTransform, Palette, UserError
from igpt_model.classifier import Classifier, at_resolution, load_classifier, predict_proba
from igpt_model.config import ModelConfig
from igpt_model.features import encode
from igpt_model.hashing import hash_arrays
from igpt_model.model import IGPT
from igpt_model.objectives import draw_masks, loss, modal_vote
from igpt_model.process_group import Ranks
from igpt_model.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from igpt_model.training.engine import Engine
from igpt_model.training.finetune import FinetuneConfig, Finetuning, Labelled, finetune
from igpt_model.training.run import TrainingDiverged
from igpt_model.training.run_log import open_run, read_metrics
from tests.killing import killed_in

CLASSES = ("left", "right", "none")
TINY = {"steps": 20, "batch_size": 8, "lr": 0.01, "log_every": 4, "eval_every": 5, "threads": 1}


def pictures(n=30, seed=0, side=5):
    """A bar in the left or the right half, or none."""
    rng = np.random.default_rng(seed)
    images, labels = np.full((n, side, side, 3), 85, np.uint8), np.arange(n) % 3
    for image, label in zip(images, labels, strict=True):
        if label < 2:
            image[:, rng.integers(2) + (0 if label == 0 else side - 2)] = 255
    return Labelled(images, labels)


def pretrained(causal=True, seed=3):
    config = ModelConfig(n_layer=2, n_embd=16, n_head=2, vocab_size=4, n_positions=25, causal=causal)
    model = IGPT(config, seed=seed)
    model.head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    palette = Palette.fit(np.repeat(np.array([0, 85, 170, 255], np.uint8), 3).reshape(1, 2, 2, 3), 4)
    return Checkpoint(model.eval(), config, palette, ImageTransform(5), 7, hash_arrays(model.state_dict()))


def run(out, source=None, config=None, **changes):
    config = config or FinetuneConfig(**{**TINY, **changes})
    return list(finetune(config, source or pretrained(), pictures(), pictures(12, 1), CLASSES, out, {"name": "bars"}))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layer", [-1, 1])
def test_the_two_losses_equal_independent_ones(causal, layer):
    source = pretrained(causal)
    classifier = Classifier(source.model, 3, layer)
    classifier.clf.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    data = pictures()
    tokens = torch.from_numpy(source.palette.encode(data.images).astype(np.int64))
    mask = None if causal else draw_masks(np.arange(30), 25, 0.3, 0)
    clf, own = classifier.losses(tokens, torch.from_numpy(data.labels), mask)
    f = encode(source.model, tokens, mask_BT=mask)[layer].double().numpy()
    logits = f @ classifier.clf.weight.detach().double().numpy().T
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(30), data.labels]
    assert clf.item() == pytest.approx(nll.mean(), rel=1e-5)
    assert own.item() == pytest.approx(loss(source.model, tokens, mask).item(), rel=1e-6)


def test_the_first_record_is_chance_and_the_models_own_loss(tmp_path):
    source = pretrained()
    record = run(tmp_path, source, steps=1, log_every=1, batch_size=30, gen_weight=0.5)[1]
    tokens = torch.from_numpy(source.palette.encode(pictures().images).astype(np.int64))
    expected = loss(source.model, tokens).item()
    assert record["clf_loss"] == pytest.approx(np.log(3), rel=1e-6)  # the head starts at zero
    assert record["gen_loss"] == pytest.approx(expected, rel=1e-5)
    assert record["loss"] == pytest.approx(np.log(3) + 0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("gen_weight", [0.0, 1.0])
def test_gradients_reach_every_weight_that_a_loss_depends_on(gen_weight):
    source = pretrained()
    classifier = Classifier(source.model, 3)
    classifier.clf.weight.data.fill_(0.1)
    classifier.clf.weight.data[0] = -0.1
    data = pictures()
    tokens = torch.from_numpy(source.palette.encode(data.images).astype(np.int64))
    clf, own = classifier.losses(tokens, torch.from_numpy(data.labels), None, gen_weight > 0)
    (clf if own is None else clf + own).backward()
    untouched = {n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert untouched == (set() if gen_weight else {"igpt.head.weight"})


def test_a_head_on_a_middle_layer_leaves_deeper_blocks_alone(tmp_path):
    source = pretrained()
    run(tmp_path, source, layer=1, gen_weight=0.0, steps=5)
    tuned = load_classifier(tmp_path).classifier
    assert tuned.layer == 1
    before, after = source.model.state_dict(), tuned.igpt.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(n.startswith(("wte", "wpe", "sos", "h.0", "h.1.ln_1")) for n in changed)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_small_set_is_learnt_by_heart(tmp_path, causal, from_scratch):
    records = run(tmp_path, pretrained(causal), steps=60, eval_every=30, from_scratch=from_scratch, patience=0)
    data = pictures()
    tuned = load_classifier(tmp_path)
    masked = predict_proba(tuned.classifier, tuned.palette.encode(data.images), n_masks=5)
    found = modal_vote(masked.argmax(-1), np.arange(30))
    assert (found == data.labels).mean() > 0.9
    assert records[-1]["best_accuracy"] == tuned.val_accuracy > 0.8
    proba = tuned.predict_proba(list(data.images))
    assert proba.shape == (30, 3)
    assert np.allclose(proba.sum(1), 1, atol=1e-5)


def test_from_scratch_keeps_nothing_of_the_pretrained_weights(tmp_path):
    run(tmp_path / "a", pretrained(seed=3), from_scratch=True, steps=5)
    run(tmp_path / "b", pretrained(seed=4), from_scratch=True, steps=5)
    one, two = (load_classifier(tmp_path / name).classifier.state_dict() for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("causal", [True, False])
def test_paused_anywhere_it_ends_with_the_same_bits(tmp_path, causal):
    config = FinetuneConfig(**TINY, augment=("flip", "pad_crop:1"), micro_batch=3, warmup_steps=3, eval_masks=2)
    source = pretrained(causal)
    whole = run(tmp_path / "whole", source, config)
    for _ in range(8):
        updates = iter([False] * 2 + [True] * 99)
        parts = (pictures(), pictures(12, 1), CLASSES, tmp_path / "paused", {"name": "bars"})
        records = list(finetune(config, source, *parts, stop=updates.__next__))
    assert records[-1] == whole[-1]
    one, two = (load_classifier(tmp_path / name) for name in ("whole", "paused"))
    assert one.step == two.step
    assert all(torch.equal(a, b) for a, b in zip(one.classifier.parameters(), two.classifier.parameters(), strict=True))
    evals = [
        [r for r in read_metrics(tmp_path / n / "metrics.jsonl") if r["kind"] == "eval"] for n in ("whole", "paused")
    ]
    assert evals[0] == evals[1]


def test_left_in_the_middle_it_goes_on(tmp_path):
    whole = run(tmp_path / "whole")
    records = finetune(
        FinetuneConfig(**TINY), pretrained(), pictures(), pictures(12, 1), CLASSES, tmp_path / "left", {"name": "bars"}
    )
    while next(records)["step"] < 8:
        pass
    records.close()
    assert run(tmp_path / "left")[-1] == whole[-1]


STAGES = {
    "after an update": (Engine.update, "return"),
    "before saving": (save_checkpoint, "call"),
    "before older ones go": (prune_checkpoints, "call"),
}


@pytest.mark.parametrize("at", [4, 15])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_it_ends_with_the_same_bits(tmp_path, stage, at):
    whole = run(tmp_path / "whole")
    parts = (pictures(), pictures(12, 1), CLASSES, tmp_path / "killed", {"name": "bars"})
    records = finetune(FinetuneConfig(**TINY), pretrained(), *parts)
    while next(records)["step"] < at:
        pass
    with killed_in(*STAGES[stage]):
        list(records)
    assert run(tmp_path / "killed")[-1] == whole[-1]
    one, two = (load_classifier(tmp_path / name).classifier for name in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert [{**record, "tokens_per_s": 0} for record in logs[0]] == [
        {**record, "tokens_per_s": 0} for record in logs[1]
    ]


def test_damaged_checkpoints_are_set_aside_aloud(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "hurt")
    newest, before = reversed(list_checkpoints(tmp_path / "hurt")[-2:])
    (newest / "weights.safetensors").write_bytes(b"")
    records = run(tmp_path / "hurt")
    assert [r["kind"] for r in records[:2]] == ["damaged", "start"]
    assert records[1]["step"] == int(before.name)
    assert records[-1] == whole[-1]
    # nothing left to go on from but the best one, which has lost its optimiser state
    for folder in list_checkpoints(tmp_path / "hurt"):
        if (folder / "trainer.json").exists():
            (folder / "weights.safetensors").write_bytes(b"")
    assert run(tmp_path / "hurt")[-1] == whole[-1]


def test_patience_ends_the_run_and_the_best_checkpoint_stays(tmp_path):
    records = run(tmp_path, lr=1e-9, patience=2, steps=100)
    assert records[-1]["reason"] == "patience"
    assert (records[-1]["best_step"], records[-1]["step"]) == (5, 15)
    assert [int(f.name) for f in list_checkpoints(tmp_path)] == [5, 10, 15]
    assert load_classifier(tmp_path).step == 5
    assert [r["kind"] for r in run(tmp_path, lr=1e-9, patience=2, steps=100)] == ["start", "end"]


def test_masks_at_prediction_vote_and_do_not_depend_on_the_batch():
    source = pretrained(causal=False)
    classifier = Classifier(source.model, 3)
    classifier.clf.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    tokens = source.palette.encode(pictures().images)
    together = predict_proba(classifier, tokens, n_masks=5)
    assert together.shape == (5, 30, 3)
    assert not np.array_equal(together[0], together[1])
    alone = predict_proba(classifier, tokens[7:9], np.array([7, 8]), n_masks=5, batch_size=1)
    assert np.allclose(alone, together[:, 7:9], atol=1e-6)
    voted = modal_vote(predict_proba(classifier, tokens, n_masks=5).argmax(-1), np.arange(len(tokens)))
    counts = np.stack([(together.argmax(-1) == k).sum(0) for k in range(3)], 1)
    assert np.array_equal(counts[np.arange(30), voted], counts.max(1))


def test_positions_are_resized_as_a_picture(tmp_path):
    model = pretrained().model
    same = at_resolution(model, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(5.0), indexing="ij")
    model.wpe.weight.data[:, 0] = torch.from_numpy((rows + 10 * columns).ravel())
    larger = at_resolution(model, 10)
    assert larger.config.n_positions == 100
    grid = larger.wpe.weight[:, 0].reshape(10, 10).numpy(force=True)
    # a plane stays a plane away from the edges: pixel i of 10 lies at (i + 1/2) / 2 - 1/2 of 5
    expected = ((np.arange(10) + 0.5) / 2 - 0.5)[3:7]
    assert np.allclose(grid[3:7, 3:7], expected[:, None] + 10 * expected, atol=1e-4)
    data, val = pictures(side=8), pictures(12, 1, side=8)
    config = FinetuneConfig(**{**TINY, "resolution": 8, "steps": 2})
    assert list(finetune(config, pretrained(), data, val, CLASSES, tmp_path))[-1]["kind"] == "end"
    assert load_checkpoint(tmp_path).transform.resolution == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens_NT": 3}, r"Tokens are torch.int64 \(\)"),
        ({"tokens_NT": np.full((2, 25), 99)}, "Tokens run from 99 to 99"),
        ({"tokens_NT": np.zeros((2, 25))}, "Tokens are torch.float64"),
        ({"row_ids_N": 3}, r"row ids have shape \(\)"),
        ({"row_ids_N": [0, 1, 2]}, r"row ids have shape \(3,\); give one for each of 2 images"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"n_masks": 0}, "n_masks is 0"),
        ({"seed": "1"}, "seed is '1'"),
    ],
)
def test_unusable_arguments_of_predictions_are_refused(arguments, message):
    classifier = Classifier(pretrained().model, 3)
    with pytest.raises(UserError, match=message):
        predict_proba(**{"classifier": classifier, "tokens_NT": np.zeros((2, 25), int)} | arguments)
    for resolution in (0, -1, 10**30):
        with pytest.raises(UserError, match="resolution is"):
            at_resolution(classifier.igpt, resolution)


def test_a_fine_tuned_run_is_a_run(tmp_path):
    source = pretrained()
    folder = save_checkpoint(tmp_path / "run/checkpoints/0000007", source.model, source.palette, ImageTransform(5), 7)
    run(tmp_path / "tuned", folder.parents[1], steps=5)
    loaded = load_checkpoint(tmp_path / "tuned")
    assert loaded.palette == source.palette
    assert loaded.provenance["finetune"]["source"]["weights_hash"] == source.weights_hash
    assert loaded.provenance["finetune"]["classes"] == list(CLASSES)
    with pytest.raises(UserError, match="no fine-tuned classifier"):
        load_classifier(tmp_path / "run")


def test_other_settings_models_data_and_labels_are_refused(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(UserError, match=r"finetune\.lr: 0\.01 there, 0\.02 here"):
        run(tmp_path, steps=5, lr=0.02)
    with pytest.raises(UserError, match=r"source\.weights_hash"):
        run(tmp_path, pretrained(seed=9), steps=5)
    config = FinetuneConfig(**{**TINY, "steps": 5})
    swapped = Labelled(pictures().images, pictures().labels[::-1].copy())
    with pytest.raises(UserError, match="differ from those that the run"):
        list(finetune(config, pretrained(), swapped, pictures(12, 1), CLASSES, tmp_path, {"name": "bars"}))
    with pytest.raises(UserError, match="integers from 0 to 1"):
        list(finetune(config, pretrained(), pictures(), pictures(12, 1), CLASSES[:2], tmp_path / "b"))
    for labels in (torch.zeros(30, dtype=torch.long, device="meta"), ["left"] * 30, torch.eye(30).to_sparse()):
        part = Labelled(pictures().images, labels)
        with pytest.raises(UserError, match="given as the training labels"):
            list(finetune(config, pretrained(), part, pictures(12, 1), CLASSES, tmp_path / "b"))
    with pytest.raises(UserError, match="give 0 to 2"):
        run(tmp_path / "c", layer=3)


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"steps": 0}, {"dtype": "half"}, {"gen_weight": -1.0}, {"seed": -1}])
def test_bad_settings_are_refused(change):
    with pytest.raises(UserError):
        FinetuneConfig(**{**TINY, **change})


def test_bfloat16_keeps_float32_weights(tmp_path):
    run(tmp_path, dtype="bfloat16", steps=5)
    assert {p.dtype for p in load_classifier(tmp_path).classifier.parameters()} == {torch.float32}


def test_metrics_are_json_and_equal_the_records(tmp_path):
    records = [r for r in run(tmp_path) if r["kind"] in ("step", "eval", "checkpoint")]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == records


def begun(out, kind=Finetuning, **changes):
    """The run behind `finetune`, for tests that step into it; its `records(None)` follow."""
    config, source = FinetuneConfig(**{**TINY, **changes}), pretrained()
    origin = {"weights_hash": source.weights_hash, "palette_hash": source.palette.hash, "step": source.step}
    data = {"train_images": 30, "val_images": 12, "name": "bars"}
    run_config = {"finetune": config.to_dict(), "source": origin, "classes": list(CLASSES), "data": data}
    open_run(out, run_config)
    made = kind(config, out, Ranks(), source, (pictures(), pictures(12, 1)), run_config)
    assert [record["kind"] for record in made.open({})] == ["start"]
    return made


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_good_checkpoints(tmp_path):
    whole = run(tmp_path / "whole")
    stopped = begun(tmp_path / "stopped")
    records = stopped.records(None)
    while next(records)["step"] < 12:
        pass
    stopped.classifier.clf.weight.data[0] = torch.nan
    with pytest.raises(TrainingDiverged, match=r"not finite at step 15 .*; the last good checkpoint is of step 10; "):
        list(records)
    assert [int(f.name) for f in list_checkpoints(tmp_path / "stopped")][-1] == 10
    assert run(tmp_path / "stopped")[-1] == whole[-1]


def test_ctrl_c_during_an_update_saves_after_it(tmp_path):
    class Interrupted(Finetuning):
        def update(self):
            super().update()
            if self.step == 7:
                signal.raise_signal(signal.SIGINT)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        list(begun(tmp_path / "stopped", Interrupted).records(None))
    assert list_checkpoints(tmp_path / "stopped")[-1].name == "0000007"
    assert run(tmp_path / "stopped")[-1] == whole[-1]


def test_left_before_an_evaluation_the_step_is_done_again(tmp_path):
    """A checkpoint that skips its evaluation could never be the best one."""
    whole = run(tmp_path / "whole", steps=18)
    left = begun(tmp_path / "left", steps=18).records(None)
    while next(left)["step"] < 18:
        pass
    left.close()
    assert list_checkpoints(tmp_path / "left")[-1].name == "0000015"
    assert run(tmp_path / "left", steps=18)[-1] == whole[-1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_set_is_learnt_on_a_gpu(tmp_path, dtype):
    records = run(tmp_path, pretrained(causal=False), device="cuda", dtype=dtype, steps=60, eval_masks=2, patience=0)
    assert records[-1]["best_accuracy"] > 0.8
    tuned = load_classifier(tmp_path, "cuda")
    assert tuned.predict_proba(list(pictures().images), n_masks=2).shape == (30, 3)
