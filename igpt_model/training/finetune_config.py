"""The settings of a fine-tuning run: the one source of the command line's flags, their defaults and their help."""

from dataclasses import asdict, dataclass
from typing import Any

from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, RATE, SEED, WEIGHT, Range, check_ranges, option
from igpt_model.training.config import choose


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning; the defaults follow the paper where it speaks (FACTS section 5).

    Ours are the clipping, the number of updates and the patience: the paper stops at the best validation accuracy and
    gives no counts.
    """

    layer: int = option(-1, "Layer whose pooled state the head reads: 0 the embedding, -1 the last.", Range(-1, 1000))
    gen_weight: float = option(
        1.0, "Weight of the pre-training loss beside that of the classes; 0: classes alone.", WEIGHT
    )
    from_scratch: bool = option(False, "Start from fresh weights: the control without pre-training.")
    resolution: int = option(
        0, "Pixels a side; another one resizes the table of positions. 0: as in pre-training.", Range(0, MAX_RESOLUTION)
    )
    augment: tuple[str, ...] = option(
        (), "Random changes to training pictures, as for train; for CIFAR pad_crop:4 and flip."
    )
    steps: int = option(1000, "Most updates.", COUNT)
    batch_size: int = option(128, "Pictures an update, over all ranks.", COUNT)
    micro_batch: int = option(
        0, "Pictures a forward pass, on each rank; gradients add up to the batch. 0: all at once.", COUNT_OR_NONE
    )
    lr: float = option(
        0.0003, "Learning rate, constant after warm-up; the paper's is about a tenth of pre-training's.", RATE
    )
    warmup_steps: int = option(0, "Updates over which the learning rate rises.", COUNT_OR_NONE)
    betas: tuple[float, float] = option((0.9, 0.95), "Adam's betas.", Range(0, 1, below=True))
    weight_decay: float = option(0.0, "AdamW's decay of the blocks' matrices; the paper uses none.", WEIGHT)
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", NOT_NEGATIVE)
    patience: int = option(
        5, "Stop after so many evaluations without a better validation accuracy; 0: never.", COUNT_OR_NONE
    )
    eval_every: int = option(100, "Updates between validations, each of which is a checkpoint.", COUNT)
    eval_masks: int = option(
        1, "BERT: masks an image at validation, whose modal class counts (the paper: 5).", Range(1, 10_000)
    )
    log_every: int = option(10, "Updates between records of the training loss.", COUNT)
    seed: int = option(0, "Seed of order, augmentation and masks, and of fresh weights.", SEED)
    dtype: str = option("float32", "float32, or bfloat16 for autocast with float32 master weights.")
    parallel: str = option("none", "Processes started by torchrun: none, or ddp (a copy of the model each).")
    device: str = option("cpu", "Where to train: cpu, cuda, cuda:1.")
    threads: int = option(0, "CPU threads; 0: PyTorch's choice. Exact resuming needs the same number.", Range(0, 1024))

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "betas", tuple(self.betas))
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        choose("parallel", self.parallel, ("none", "ddp"))
        check_ranges(self)

    def transform(self, trained: ImageTransform) -> ImageTransform:
        """How pictures are prepared: as in pre-training, at this run's resolution, with this run's augmentation."""
        return ImageTransform(self.resolution or trained.resolution, trained.resize, self.augment)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict."""
        return asdict(self)
