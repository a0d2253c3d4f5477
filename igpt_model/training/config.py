"""The settings of a training run: the one source of the command line's flags, their defaults and their help."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from igpt_model.arguments import check_fields
from igpt_model.config import MAX_COLOURS, ModelConfig
from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, RATE, SEED, WEIGHT, Range, check_settings, option

MODEL, DATA, OPTIMISATION = "Model", "Data", "Optimisation"
LOGS, HARDWARE = "Checkpoints and logs", "Hardware"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of pre-training; the defaults are the paper's where it gives them (FACTS section 3).

    Two choices are ours: gradients are clipped at norm 1 (the paper does not mention clipping; 0 turns it off) and the
    warm-up is given in steps (the paper warms up for one epoch).
    """

    model: Literal["tiny", "S", "M", "L", "XL"] = option("tiny", "Preset of the transformer.", MODEL)
    n_layer: int | None = option(None, "Number of blocks, instead of the preset's.", MODEL, Range(1, 1000))
    n_embd: int | None = option(None, "Width of the residual stream, instead of the preset's.", MODEL, Range(1, 65_536))
    n_head: int | None = option(None, "Attention heads, instead of the preset's.", MODEL, Range(1, 65_536))
    objective: Literal["autoregressive", "bert"] = option(
        "autoregressive", "Predict the next pixel (autoregressive) or masked pixels (bert).", MODEL
    )
    mask_prob: float = option(0.15, "Probability that a pixel is masked (bert).", MODEL, Range(0, 1, above=True))
    resolution: int = option(
        32, "Side of the images in pixels; the model reads resolution^2 tokens.", DATA, Range(1, MAX_RESOLUTION)
    )
    resize: str = option("bilinear", "Pillow filter that resizes images to the resolution.", DATA)
    n_colours: int = option(512, "Colours in the palette (512 is the paper's 9 bits).", DATA, Range(1, MAX_COLOURS))
    augment: tuple[str, ...] = option(
        (), "Random augmentation of training images: resize_crop:256:384:224, flip, pad_crop:4.", DATA
    )
    steps: int = option(1000, "Number of updates.", OPTIMISATION, COUNT)
    batch_size: int = option(128, "Images per update, over all ranks.", OPTIMISATION, COUNT)
    micro_batch: int = option(
        0,
        "Images per forward pass on each rank; gradients are accumulated over the batch. 0: all at once.",
        HARDWARE,
        COUNT_OR_NONE,
    )
    lr: float = option(
        0.003, "Peak learning rate; the paper lowers it by 3 until training is stable.", OPTIMISATION, RATE
    )
    warmup_steps: int = option(
        100, "Updates over which the learning rate rises to its peak.", OPTIMISATION, COUNT_OR_NONE
    )
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "Learning rate after the warm-up; cosine ends at 0.", OPTIMISATION
    )
    betas: tuple[float, float] = option(
        (0.9, 0.95), "Adam's betas; a second of 0.999 causes loss spikes.", OPTIMISATION, Range(0, 1, below=True)
    )
    weight_decay: float = option(
        0.0, "AdamW's decay of the blocks' matrices; the paper uses none.", OPTIMISATION, WEIGHT
    )
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", OPTIMISATION, NOT_NEGATIVE)
    seed: int = option(0, "Seed of weights, palette, order, augmentation and masks.", OPTIMISATION, SEED)
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Precision of the forward pass; bfloat16 is autocast with float32 master weights.", HARDWARE
    )
    parallel: Literal["none", "ddp", "fsdp"] = option(
        "none", "Processes started by torchrun: ddp (a copy of the model each) or fsdp (a part each).", HARDWARE
    )
    checkpoint_blocks: bool = option(
        False, "Recompute each block in the backward pass: less memory, a third more work.", HARDWARE
    )
    compile: bool = option(False, "Compile each block (torch.compile), which takes about a minute.", HARDWARE)
    device: str = option("cpu", "Device: cpu, cuda, cuda:1.", HARDWARE)
    threads: int = option(
        0, "CPU threads; 0: PyTorch's choice. Exact resuming needs the same number.", HARDWARE, Range(0, 1024)
    )
    log_every: int = option(10, "Updates between records of the training loss.", LOGS, COUNT)
    eval_every: int = option(250, "Updates between validation losses.", LOGS, COUNT)
    eval_images: int = option(1024, "Validation images used, evenly spaced.", LOGS, COUNT)
    checkpoint_every: int = option(250, "Updates between checkpoints.", LOGS, COUNT)
    keep_last: int = option(3, "Newest checkpoints that are kept with their optimiser state.", LOGS, COUNT)
    keep_at: tuple[int, ...] | None = option(
        None, "Steps whose checkpoints are kept permanently; by default powers of two from 64 on.", LOGS, COUNT_OR_NONE
    )
    spike: float = option(
        0.5,
        "Stop when the loss has risen by this share of its total decrease for 5 records; 0: never.",
        LOGS,
        NOT_NEGATIVE,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.keep_at is not None:
            object.__setattr__(self, "keep_at", tuple(sorted(self.keep_at)))
        check_settings(self)
        _ = self.transform, self.model_config  # their own checks, now rather than later

    @property
    def transform(self) -> ImageTransform:
        """How images are prepared for this run."""
        return ImageTransform(self.resolution, self.resize, self.augment)

    @property
    def model_config(self) -> ModelConfig:
        """The transformer of this run."""
        given = {"n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head}
        return ModelConfig.preset(
            self.model,
            vocab_size=self.n_colours,
            n_positions=self.resolution**2,
            causal=self.objective == "autoregressive",
            mask_prob=self.mask_prob,
            **{name: value for name, value in given.items() if value is not None},
        )

    def keeps(self, step: int) -> bool:
        """Say whether this step's checkpoint is kept for good: `keep_at`, or powers of two from 64 on; and step 0."""
        if self.keep_at is None:
            return step == 0 or (step >= 64 and step & (step - 1) == 0)
        return step == 0 or step in self.keep_at

    def saves(self, step: int) -> bool:
        """Say whether a checkpoint is written after this many updates."""
        return step % self.checkpoint_every == 0 or step == self.steps or self.keeps(step)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict."""
        return asdict(self)
