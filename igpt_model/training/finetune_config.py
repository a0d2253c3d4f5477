"""The settings of a fine-tuning run: the one source of the command line's flags, their defaults and their help."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, RATE, SEED, WEIGHT, Range, check_settings, option
from igpt_model.training.config import BETA, DATA, HARDWARE, LOGS, MODEL, OPTIMISATION, PRECISION, THREADS


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning; the defaults are the paper's where it gives them.

    Ours are the clipping, the number of updates and the patience: the paper stops at the best validation accuracy and
    gives no counts.
    """

    layer: int = option(-1, "Layer that the head reads: 0 the embedding, -1 the last.", MODEL, Range(-1, 1000))
    gen_weight: float = option(1.0, "Weight of the pre-training loss beside the classes'.", OPTIMISATION, WEIGHT)
    from_scratch: bool = option(False, "Start from random weights: the control without pre-training.", MODEL)
    resolution: int = option(
        0,
        "Side of the images in pixels; another one resizes the position table. 0: as in pre-training.",
        DATA,
        Range(0, MAX_RESOLUTION),
    )
    augment: tuple[str, ...] = option((), "Random augmentation as for train; CIFAR: pad_crop:4 and flip.", DATA)
    steps: int = option(1000, "Largest number of updates.", OPTIMISATION, COUNT)
    batch_size: int = option(128, "Images per update, over all ranks.", OPTIMISATION, COUNT)
    micro_batch: int = option(0, "Images per forward pass on each rank; 0: all at once.", HARDWARE, COUNT_OR_NONE)
    lr: float = option(0.0003, "Learning rate; the paper's is a tenth of pre-training's.", OPTIMISATION, RATE)
    warmup_steps: int = option(0, "Updates in which the rate rises; then it is constant.", OPTIMISATION, COUNT_OR_NONE)
    betas: tuple[float, float] = option((0.9, 0.95), "Adam's betas.", OPTIMISATION, BETA)
    weight_decay: float = option(0.0, "AdamW's decay of the blocks' matrices; the paper: 0.", OPTIMISATION, WEIGHT)
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", OPTIMISATION, NOT_NEGATIVE)
    patience: int = option(
        5, "Stop after so many evaluations without a better one; 0: never.", OPTIMISATION, COUNT_OR_NONE
    )
    eval_every: int = option(100, "Updates between evaluations, each of which writes a checkpoint.", LOGS, COUNT)
    eval_masks: int = option(1, "Masks per image at evaluation (bert; the paper: 5).", LOGS, Range(1, 10_000))
    log_every: int = option(10, "Updates between records of the training loss.", LOGS, COUNT)
    seed: int = option(0, "Seed of order, augmentation and masks, and of random weights.", OPTIMISATION, SEED)
    dtype: Literal["float32", "bfloat16"] = option("float32", PRECISION, HARDWARE)
    parallel: Literal["none", "ddp"] = option("none", "Processes started by torchrun: ddp (a model each).", HARDWARE)
    device: str = option("cpu", "Device: cpu, cuda, cuda:1.", HARDWARE)
    threads: int = option(0, THREADS, HARDWARE, Range(0, 1024))

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "betas", tuple(self.betas))
        check_settings(self)

    def transform(self, trained: ImageTransform) -> ImageTransform:
        """How images are prepared: as in pre-training, at this run's resolution, with this run's augmentation."""
        return ImageTransform(self.resolution or trained.resolution, trained.resize, self.augment)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict."""
        return asdict(self)
