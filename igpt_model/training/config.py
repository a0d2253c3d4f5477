"""Settings of training and fine-tuning, from which the command line takes its flags, defaults and help texts."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from igpt_model.config import MAX_COLOURS, ModelConfig
from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, RATE, SEED, WEIGHT, Range, check_settings, option

MODEL, DATA, OPTIMISATION = "Model", "Data", "Optimisation"
LOGS, HARDWARE = "Checkpoints and logs", "Hardware"
PRECISION = "Precision of the forward pass; bfloat16 is autocast with float32 master weights."
THREADS = "CPU threads; 0: PyTorch's choice. Exact resuming needs the same number."
BETA = Range(0, 1, below=True)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of pre-training, with the paper's values as defaults if it states them.

    Two choices are ours: gradients are clipped at norm 1 (the paper does not mention clipping), and warm-up is measured
    in steps (the paper warms up for one epoch and divides the learning rate by 3 until training is stable).
    """

    model: Literal["tiny", "S", "M", "L", "XL"] = option("tiny", "Preset of the transformer.", MODEL)
    n_layer: int | None = option(None, "Number of blocks, instead of the preset's.", MODEL, Range(1, 1000))
    n_embd: int | None = option(None, "Width of the residual stream, instead of the preset's.", MODEL, Range(1, 65_536))
    n_head: int | None = option(None, "Attention heads, instead of the preset's.", MODEL, Range(1, 65_536))
    objective: Literal["autoregressive", "bert"] = option(
        "autoregressive", "Predict the next pixel (autoregressive) or masked pixels (bert).", MODEL
    )
    mask_prob: float = option(0.15, "Probability that a pixel is masked (bert).", MODEL, Range(0, 1, above=True))
    resolution: int = option(32, "Side of the images in pixels: resolution^2 tokens.", DATA, Range(1, MAX_RESOLUTION))
    resize: str = option("bilinear", "Pillow filter that resizes images to the resolution.", DATA)
    n_colours: int = option(512, "Colours in the palette (512 is the paper's 9 bits).", DATA, Range(1, MAX_COLOURS))
    augment: tuple[str, ...] = option((), "Random augmentation: resize_crop:256:384:224, flip, pad_crop:4.", DATA)
    steps: int = option(1000, "Number of updates.", OPTIMISATION, COUNT)
    batch_size: int = option(128, "Images per update, over all ranks.", OPTIMISATION, COUNT)
    micro_batch: int = option(0, "Images per forward pass on each rank; 0: all at once.", HARDWARE, COUNT_OR_NONE)
    lr: float = option(0.003, "Peak learning rate; lower it until training is stable.", OPTIMISATION, RATE)
    warmup_steps: int = option(100, "Updates in which the rate rises to its peak.", OPTIMISATION, COUNT_OR_NONE)
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "Rate after the warm-up; cosine ends at 0.", OPTIMISATION
    )
    betas: tuple[float, float] = option((0.9, 0.95), "Adam's betas; 0.999 causes loss spikes.", OPTIMISATION, BETA)
    weight_decay: float = option(0.0, "AdamW's decay of the blocks' matrices; the paper: 0.", OPTIMISATION, WEIGHT)
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", OPTIMISATION, NOT_NEGATIVE)
    seed: int = option(0, "Seed of weights, palette, order, augmentation and masks.", OPTIMISATION, SEED)
    dtype: Literal["float32", "bfloat16"] = option("float32", PRECISION, HARDWARE)
    parallel: Literal["none", "ddp", "fsdp"] = option(
        "none", "Processes started by torchrun: ddp (a copy of the model each) or fsdp (a part each).", HARDWARE
    )
    checkpoint_blocks: bool = option(False, "Recompute blocks in the backward pass: less memory, more work.", HARDWARE)
    compile: bool = option(False, "Compile each block (torch.compile), which takes about a minute.", HARDWARE)
    device: str = option("cpu", "Device: cpu, cuda, cuda:1.", HARDWARE)
    threads: int = option(0, THREADS, HARDWARE, Range(0, 1024))
    log_every: int = option(10, "Updates between records of the training loss.", LOGS, COUNT)
    eval_every: int = option(250, "Updates between validation losses.", LOGS, COUNT)
    eval_images: int = option(1024, "Validation images used, evenly spaced.", LOGS, COUNT)
    checkpoint_every: int = option(250, "Updates between checkpoints.", LOGS, COUNT)
    keep_last: int = option(3, "Number of newest checkpoints kept with their optimiser state.", LOGS, COUNT)
    keep_at: tuple[int, ...] | None = option(
        None, "Steps whose checkpoints are kept permanently; by default powers of two from 64 on.", LOGS, COUNT_OR_NONE
    )
    spike: float = option(
        0.5, "Stop if the loss loses this fraction of its decrease for 5 records; 0: never.", LOGS, NOT_NEGATIVE
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.keep_at is not None:
            object.__setattr__(self, "keep_at", tuple(sorted(self.keep_at)))
        _ = self.transform, self.model_config  # run their checks now

    @property
    def transform(self) -> ImageTransform:
        """The image transform of this run."""
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
        """Return whether a step's checkpoint is kept: `keep_at`, or powers of two from 64 on; and step 0."""
        powers = step >= 64 and step & (step - 1) == 0
        return step == 0 or (powers if self.keep_at is None else step in self.keep_at)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written after this many updates."""
        return step % self.checkpoint_every == 0 or step == self.steps or self.keeps(step)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict."""
        return asdict(self)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning, with the paper's values as defaults if it states them.

    Clipping, the number of updates and the patience are ours; the paper stops at the best validation accuracy and
    does not state numbers.
    """

    layer: int = option(-1, "Layer that the head reads: 0 the embedding, -1 the last.", MODEL, Range(-1, 1000))
    gen_weight: float = option(1.0, "Weight of the added pre-training loss.", OPTIMISATION, WEIGHT)
    from_scratch: bool = option(False, "Start from random weights, as a control without pre-training.", MODEL)
    resolution: int = option(
        0,
        "Side of the images in pixels; 0: as in pre-training. A different size resizes the position table.",
        DATA,
        Range(0, MAX_RESOLUTION),
    )
    augment: tuple[str, ...] = option((), "Random augmentation as for train; CIFAR: pad_crop:4 and flip.", DATA)
    steps: int = option(1000, "Maximum number of updates.", OPTIMISATION, COUNT)
    batch_size: int = option(128, "Images per update, over all ranks.", OPTIMISATION, COUNT)
    micro_batch: int = option(0, "Images per forward pass on each rank; 0: all at once.", HARDWARE, COUNT_OR_NONE)
    lr: float = option(0.0003, "Learning rate; the paper's is a tenth of pre-training's.", OPTIMISATION, RATE)
    warmup_steps: int = option(0, "Warm-up updates; then the rate is constant.", OPTIMISATION, COUNT_OR_NONE)
    betas: tuple[float, float] = option((0.9, 0.95), "Adam's betas.", OPTIMISATION, BETA)
    weight_decay: float = option(0.0, "AdamW's decay of the blocks' matrices; the paper: 0.", OPTIMISATION, WEIGHT)
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", OPTIMISATION, NOT_NEGATIVE)
    patience: int = option(
        5, "Stop after this many evaluations without improvement; 0: never.", OPTIMISATION, COUNT_OR_NONE
    )
    eval_every: int = option(100, "Updates between evaluations, each of which writes a checkpoint.", LOGS, COUNT)
    eval_masks: int = option(1, "Masks per image at evaluation (bert; 5 in the paper).", LOGS, Range(1, 10_000))
    log_every: int = option(10, "Updates between records of the training loss.", LOGS, COUNT)
    seed: int = option(0, "Seed of order, augmentation and masks, and of random weights.", OPTIMISATION, SEED)
    dtype: Literal["float32", "bfloat16"] = option("float32", PRECISION, HARDWARE)
    parallel: Literal["none", "ddp"] = option("none", "Processes started by torchrun: ddp (a model each).", HARDWARE)
    device: str = option("cpu", "Device: cpu, cuda, cuda:1.", HARDWARE)
    threads: int = option(0, THREADS, HARDWARE, Range(0, 1024))

    def __post_init__(self) -> None:
        check_settings(self)

    def transform(self, trained: ImageTransform) -> ImageTransform:
        """Return the image transform: as in pre-training, at this run's resolution and with its augmentation."""
        return ImageTransform(self.resolution or trained.resolution, trained.resize, self.augment)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict."""
        return asdict(self)
