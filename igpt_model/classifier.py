"""Classifier for fine-tuning: an iGPT with a linear head on the pooled state of a layer (paper, section 2.4).

Letters: B images of a batch, N images, T positions, D width, K classes, M masks, P pixels per side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from igpt_model.arguments import checked, plain_array
from igpt_model.checked_json import Int, Real, mismatch
from igpt_model.errors import UserError
from igpt_model.features import checked_tokens, pool
from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.model import IGPT, Linear
from igpt_model.objectives import draw_masks, loss_of_state
from igpt_model.palette import Palette
from igpt_model.ranges import Range, check_at_least, check_range
from igpt_model.training.checkpoint import (
    HEAD,
    list_checkpoints,
    load_checkpoint,
    read_about,
    read_tensors,
)

_FINETUNE = {"classes": [str], "layer": Int(0, 10_000), "val_accuracy": (Real(0, 1), None)}


class Classifier(nn.Module):
    """A linear head without bias, initialised to zero as in the released code, on the pooled state of layer k.

    `layer` is k as in `igpt_model.features`: 0 the embedding, L the last block; -1 is L.
    """

    @checked
    def __init__(self, igpt: IGPT, n_classes: int, layer: int = -1) -> None:
        super().__init__()
        if not -1 <= layer <= igpt.L:
            raise UserError(f"layer is {layer}; give 0 to {igpt.L}, or -1 for the last layer.")
        if n_classes < 2:
            raise UserError(f"n_classes is {n_classes}; a classifier needs at least two.")
        self.igpt, self.layer = igpt, igpt.L if layer == -1 else layer
        self.clf = Linear(igpt.config.n_embd, n_classes, bias=False)
        nn.init.zeros_(self.clf.weight)

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return the class logits (B, K) in float32, computing no layer deeper than the head's."""
        return self.run(tokens_BT, mask_BT, to_the_end=False)[0]

    def run(self, tokens_BT: Tensor, mask_BT: Tensor | None, to_the_end: bool) -> tuple[Tensor, Tensor]:
        """Return the class logits and the deepest state computed: that of the last block with `to_the_end`."""
        last = self.igpt.L if to_the_end else self.layer
        # `range` comes first in zip, so that no deeper block is run
        for k, h_BTD in zip(range(last + 1), self.igpt.hidden_states(tokens_BT, mask_BT), strict=False):
            if k == self.layer:
                logits_BK = self.clf(pool(self.igpt, k, h_BTD)).float()
        return logits_BK, h_BTD

    def losses(
        self, tokens_BT: Tensor, labels_B: Tensor, mask_BT: Tensor | None = None, generative: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return L_clf (mean nats per image) and L_gen (the pre-training loss, or None) from one forward pass."""
        logits_BK, h_BTD = self.run(tokens_BT, mask_BT, generative)
        own = loss_of_state(self.igpt, h_BTD, tokens_BT, mask_BT) if generative else None
        return F.cross_entropy(logits_BK, labels_B), own


@torch.no_grad()
@checked
def predict_proba(
    classifier: Classifier,
    tokens_NT: ArrayLike | Tensor,
    row_ids_N: ArrayLike | None = None,
    n_masks: int = 1,
    seed: int = 0,
    batch_size: int = 128,
) -> np.ndarray:
    """Return class probabilities, float32 (M, N, K), for every mask.

    Parameters
    ----------
    tokens_NT : integers (N, T)
    row_ids_N : integers (N,), optional
        BERT only: masks depend only on (seed, row id); by default 0 to N-1.
    n_masks : int
        BERT only: independent masks per image (5 in the paper). For an autoregressive model M = 1.
    """
    check_at_least(n_masks=(n_masks, 1), batch_size=(batch_size, 1))
    config, device = classifier.igpt.config, classifier.clf.weight.device
    tokens_NT = checked_tokens(tokens_NT, config.vocab_size)
    rows = np.arange(len(tokens_NT)) if row_ids_N is None else plain_array(row_ids_N, "row ids")
    if rows.shape != (len(tokens_NT),):
        raise UserError(f"The row ids have shape {rows.shape}; give one for each of {len(tokens_NT)} images.")
    proba = np.empty((1 if config.causal else n_masks, len(tokens_NT), len(classifier.clf.weight)), np.float32)
    for start in range(0, len(tokens_NT), batch_size):
        part = slice(start, start + batch_size)
        tokens = tokens_NT[part].to(device)
        for m in range(len(proba)):
            mask = None
            if not config.causal:
                mask = draw_masks(rows[part], tokens.shape[1], config.mask_prob, seed + m).to(device)
            proba[m, part] = classifier(tokens, mask).softmax(-1).cpu().numpy()
    return proba


@checked
def at_resolution(model: IGPT, resolution: int) -> IGPT:
    """Return a copy of the model for images of a different size, with its table of positions resized like an image.

    Position t belongs to pixel t (for an autoregressive model, to the predicted pixel), so the table is a grid of P x P
    vectors, which is interpolated bilinearly. This is not in the paper, which pre-trains at each resolution.
    """
    check_range("resolution", resolution, Range(1, MAX_RESOLUTION))
    side, state = model.config.side, dict(model.state_dict())
    if side != resolution:
        grid_DPP = state["wpe.weight"].T.reshape(1, -1, side, side)
        resized = F.interpolate(grid_DPP, size=(resolution, resolution), mode="bilinear", antialias=True)
        state["wpe.weight"] = resized.flatten(2)[0].T.contiguous()
    return IGPT.from_state(replace(model.config, n_positions=resolution**2), state)


@dataclass
class FineTuned:
    """A fine-tuned classifier with everything needed for predictions."""

    classifier: Classifier
    palette: Palette
    transform: ImageTransform
    classes: tuple[str, ...]
    step: int
    val_accuracy: float
    provenance: dict[str, Any]

    def predict_proba(self, images: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        """Return class probabilities (N, K) of images of any size, the mean over masks; see `predict_proba`."""
        prepared = np.stack([self.transform(image) for image in images])
        return predict_proba(self.classifier, self.palette.encode(prepared), **options).mean(0)


@checked
def load_classifier(run_dir: str | Path, device: str | torch.device = "cpu") -> FineTuned:
    """Load the checkpoint of a fine-tuning run with the best validation accuracy (the earliest of equals).

    Raises
    ------
    UserError
        The folder contains no fine-tuning run.
    """
    read = ((read_accuracy(folder), folder) for folder in list_checkpoints(run_dir))
    scored = [(value, folder) for value, folder in read if value is not None]
    best = max(scored, key=lambda pair: pair[0], default=None)  # the first of equals
    if best is None:
        raise UserError(f"{run_dir} contains no fine-tuned classifier; make one with `probekit finetune`.")
    loaded = load_checkpoint(best[1], device)
    about = loaded.provenance["finetune"]
    classifier = Classifier(loaded.model, len(about["classes"]), about["layer"])
    # shapes were checked when the checkpoint was loaded
    classifier.clf.weight = nn.Parameter(read_tensors(best[1], HEAD)["clf.weight"])
    plain = ImageTransform(loaded.transform.resolution, loaded.transform.resize)
    return FineTuned(
        classifier.to(device).eval(),
        loaded.palette,
        plain,
        tuple(about["classes"]),
        loaded.step,
        best[0],
        loaded.provenance,
    )


def read_accuracy(checkpoint: Path) -> float | None:
    """Return the validation accuracy stored in a fine-tuning checkpoint, or None if it has none."""
    about = read_about(checkpoint)["provenance"].get("finetune")
    if about is None:
        return None
    problem = mismatch(about, _FINETUNE)
    if problem:
        raise UserError(f"{checkpoint / 'config.json'} cannot be used: provenance.finetune.{problem}.")
    return about["val_accuracy"]
