"""One update and one prediction of a model that is fine-tuned, on one process or on many; nothing about runs.

Letters: N images, B images of a batch (over all ranks), T positions, K classes, M masks.
"""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igpt_model.classifier import Classifier, at_resolution, predict_proba
from igpt_model.model import IGPT
from igpt_model.training.distributed import Ranks, share_model, sum_later
from igpt_model.training.finetune_config import FinetuneConfig
from igpt_model.training.optim import make_optimizer


class JointLoss(nn.Module):
    """L_clf + weight x L_gen as a module: what DDP wraps, so that its hooks see one forward pass."""

    def __init__(self, classifier: Classifier, gen_weight: float) -> None:
        super().__init__()
        self.classifier, self.gen_weight = classifier, gen_weight

    def forward(self, tokens_BT: Tensor, labels_B: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the sum, a scalar, and its two parts without gradients (2,), the second 0 where it has no weight."""
        clf, own = self.classifier.losses(tokens_BT, labels_B, mask_BT, self.gen_weight > 0)
        total = clf if own is None else clf + self.gen_weight * own
        return total, torch.stack([clf, torch.zeros_like(clf) if own is None else own]).detach()


class Tuner:
    """A classifier in training.

    Parameters
    ----------
    config : FinetuneConfig
    start : IGPT
        The pre-trained model; it is copied, and left as it is.
    resolution : int
    n_classes : int
    ranks : Ranks

    Attributes
    ----------
    classifier : Classifier
    optimizer : torch.optim.AdamW
    """

    def __init__(self, config: FinetuneConfig, start: IGPT, resolution: int, n_classes: int, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        first = IGPT(start.config, seed=config.seed) if config.from_scratch else start
        igpt = at_resolution(first, resolution)
        self.classifier = Classifier(igpt, n_classes, config.layer).to(ranks.device).train()
        # without L_gen the output matrix, and blocks above the head's layer, have no part in the loss
        self.losses = share_model(
            JointLoss(self.classifier, config.gen_weight), igpt, ranks, some_unused=not config.gen_weight
        )
        self.optimizer = make_optimizer(igpt, config.lr, config.betas, config.weight_decay)
        self.optimizer.add_param_group({"params": [self.classifier.clf.weight], "weight_decay": 0.0})

    def update(self, tokens_BT: np.ndarray, labels_B: np.ndarray, masks_BT: Tensor | None, rate: float) -> Tensor:
        """One step of the optimiser on the whole batch, of which each rank takes its part.

        Returns
        -------
        tensor (3,) on the device
            This rank's share of L_clf and of L_gen, which add up over ranks; the gradient's norm before clipping.
        """
        config, ranks = self.config, self.ranks
        mine = ranks.part(0, len(tokens_BT))
        micro = config.micro_batch or mine.stop - mine.start
        sums = torch.zeros(2, device=ranks.device)
        for start in range(mine.start, mine.stop, micro):
            rows = slice(start, min(start + micro, mine.stop))
            batch = torch.from_numpy(tokens_BT[rows]).to(ranks.device)
            labels = torch.from_numpy(labels_B[rows]).to(ranks.device)
            mask = None if masks_BT is None else masks_BT[rows].to(ranks.device)
            share = len(batch) / len(tokens_BT)
            with sum_later(self.losses, ranks, later=rows.stop < mine.stop):
                with self.autocast():
                    loss, parts = self.losses(batch, labels, mask)
                # DDP takes the mean over ranks, where the sum is meant
                (share * ranks.size * loss).backward()
            sums = sums + share * parts
        norm = torch.nn.utils.clip_grad_norm_(self.classifier.parameters(), config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat([sums, norm[None]])

    def predict_proba(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Return class probabilities (M, N, K), the same on every rank, each of which predicts its part of the rows."""
        config, mine = self.config, self.ranks.part(0, len(tokens_NT))
        rows = np.arange(mine.start, mine.stop)
        with self.autocast():
            part = predict_proba(
                self.classifier, tokens_NT[mine], rows, config.eval_masks, config.seed, config.batch_size
            )
        return np.concatenate(self.ranks.gather(part), axis=1)

    def autocast(self) -> Any:
        """bfloat16 where asked for; the weights and the losses stay float32."""
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.ranks.device.type, torch.bfloat16)
