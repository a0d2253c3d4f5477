"""The settings of a fine-tuning run: the one source of the command line's flags, their defaults and their help."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from igpt_model.arguments import check_fields
from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, RATE, SEED, WEIGHT, Range, check_settings, option
from igpt_model.training.config import DATA, HARDWARE, LOGS, MODEL, OPTIMISATION


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning; the defaults are the paper's where it gives them (FACTS section 5).

    Ours are the clipping, the number of updates and the patience: the paper stops at the best validation accuracy and
    gives no counts.
    """

    layer: int = option(
        -1, "Layer whose pooled state the head reads: 0 the embedding, -1 the last.", MODEL, Range(-1, 1000)
    )
    gen_weight: float = option(
        1.0, "Weight of the pre-training loss beside the classification loss.", OPTIMISATION, WEIGHT
    )
    from_scratch: bool = option(False, "Start from random weights: the control without pre-training.", MODEL)
    resolution: int = option(
        0,
        "Side of the images in pixels; another one resizes the position embedding. 0: as in pre-training.",
        DATA,
        Range(0, MAX_RESOLUTION),
    )
    augment: tuple[str, ...] = option(
        (), "Random augmentation of training images, as for train; for CIFAR pad_crop:4 and flip.", DATA
    )
    steps: int = option(1000, "Largest number of updates.", OPTIMISATION, COUNT)
    batch_size: int = option(128, "Images per update, over all ranks.", OPTIMISATION, COUNT)
    micro_batch: int = option(
        0,
        "Images per forward pass on each rank; gradients are accumulated over the batch. 0: all at once.",
        HARDWARE,
        COUNT_OR_NONE,
    )
    lr: float = option(
        0.0003,
        "Learning rate, constant after the warm-up; the paper's is a tenth of pre-training's.",
        OPTIMISATION,
        RATE,
    )
    warmup_steps: int = option(0, "Updates over which the learning rate rises.", OPTIMISATION, COUNT_OR_NONE)
    betas: tuple[float, float] = option((0.9, 0.95), "Adam's betas.", OPTIMISATION, Range(0, 1, below=True))
    weight_decay: float = option(
        0.0, "AdamW's decay of the blocks' matrices; the paper uses none.", OPTIMISATION, WEIGHT
    )
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", OPTIMISATION, NOT_NEGATIVE)
    patience: int = option(
        5,
        "Stop after this many evaluations without a better validation accuracy; 0: never.",
        OPTIMISATION,
        COUNT_OR_NONE,
    )
    eval_every: int = option(100, "Updates between evaluations, each of which writes a checkpoint.", LOGS, COUNT)
    eval_masks: int = option(
        1,
        "Masks per image at evaluation, whose modal class is the prediction (bert; the paper: 5).",
        LOGS,
        Range(1, 10_000),
    )
    log_every: int = option(10, "Updates between records of the training loss.", LOGS, COUNT)
    seed: int = option(0, "Seed of order, augmentation and masks, and of random weights.", OPTIMISATION, SEED)
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Precision of the forward pass; bfloat16 is autocast with float32 master weights.", HARDWARE
    )
    parallel: Literal["none", "ddp"] = option(
        "none", "Processes started by torchrun: ddp (a copy of the model each).", HARDWARE
    )
    device: str = option("cpu", "Device: cpu, cuda, cuda:1.", HARDWARE)
    threads: int = option(
        0, "CPU threads; 0: PyTorch's choice. Exact resuming needs the same number.", HARDWARE, Range(0, 1024)
    )

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "betas", tuple(self.betas))
        check_settings(self)

    def transform(self, trained: ImageTransform) -> ImageTransform:
        """How images are prepared: as in pre-training, at this run's resolution, with this run's augmentation."""
        return ImageTransform(self.resolution or trained.resolution, trained.resize, self.augment)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict."""
        return asdict(self)
