"""The settings of a training run: the one source of the command line's flags, their defaults and their help."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from igpt_model.config import MAX_COLOURS, ModelConfig
from igpt_model.errors import UserError
from igpt_model.images import MAX_RESOLUTION, ImageTransform
from igpt_model.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, RATE, SEED, WEIGHT, Range, check_ranges, option


@dataclass(frozen=True)
class TrainConfig:
    """Settings of pre-training; the defaults follow the paper where it speaks (FACTS section 3).

    Two choices are ours: gradients are clipped at norm 1 (the paper does not mention clipping; 0 turns it off) and the
    warm-up is given in steps (the paper warms up for one epoch).
    """

    model: str = option("tiny", "Preset of the transformer: tiny, S, M, L or XL.")
    n_layer: int | None = option(None, "Number of blocks, instead of the preset's.", Range(1, 1000))
    n_embd: int | None = option(None, "Width of the residual stream, instead of the preset's.", Range(1, 65_536))
    n_head: int | None = option(None, "Attention heads, instead of the preset's.", Range(1, 65_536))
    objective: str = option(
        "autoregressive", "What is predicted: autoregressive (the next pixel) or bert (hidden ones)."
    )
    mask_prob: float = option(0.15, "For bert: the probability that a pixel is hidden.", Range(0, 1, above=True))
    resolution: int = option(
        32, "Pixels a side that the model sees; it reads resolution^2 tokens.", Range(1, MAX_RESOLUTION)
    )
    resize: str = option("bilinear", "Pillow kernel that brings pictures to the resolution.")
    n_colours: int = option(512, "Colours in the palette (512 is the paper's 9 bits).", Range(1, MAX_COLOURS))
    augment: tuple[str, ...] = option(
        (), "Random changes to training pictures: resize_crop:256:384:224, flip, pad_crop:4."
    )
    steps: int = option(1000, "Number of updates.", COUNT)
    batch_size: int = option(128, "Pictures an update, over all ranks.", COUNT)
    micro_batch: int = option(
        0, "Pictures a forward pass, on each rank; gradients add up to the batch. 0: all at once.", COUNT_OR_NONE
    )
    lr: float = option(0.003, "Peak learning rate; the paper lowers it by 3 until training is stable.", RATE)
    warmup_steps: int = option(100, "Updates over which the learning rate rises to its peak.", COUNT_OR_NONE)
    schedule: str = option("cosine", "After warm-up: cosine (to 0) or constant.")
    betas: tuple[float, float] = option(
        (0.9, 0.95), "Adam's betas; 0.999 for the second gives loss spikes.", Range(0, 1, below=True)
    )
    weight_decay: float = option(0.0, "AdamW's decay of the blocks' matrices; the paper uses none.", WEIGHT)
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", NOT_NEGATIVE)
    seed: int = option(0, "Seed of weights, palette, order, augmentation and masks.", SEED)
    dtype: str = option("float32", "float32, or bfloat16 for autocast with float32 master weights.")
    parallel: str = option("none", "Processes started by torchrun: none, ddp (a copy each) or fsdp (a part each).")
    checkpoint_blocks: bool = option(
        False, "Compute each block again in the backward pass: less memory, a third more work."
    )
    compile: bool = option(False, "Compile each block (torch.compile); worth its minute on a GPU.")
    device: str = option("cpu", "Where to train: cpu, cuda, cuda:1.")
    threads: int = option(0, "CPU threads; 0: PyTorch's choice. Exact resuming needs the same number.", Range(0, 1024))
    log_every: int = option(10, "Updates between records of the training loss.", COUNT)
    eval_every: int = option(250, "Updates between validation losses.", COUNT)
    eval_images: int = option(1024, "Validation pictures that are used, evenly spaced.", COUNT)
    checkpoint_every: int = option(250, "Updates between checkpoints.", COUNT)
    keep_last: int = option(3, "Newest checkpoints that are kept with their optimiser state.", COUNT)
    keep_at: tuple[int, ...] | None = option(
        None, "Steps whose checkpoints are kept for good; powers of two from 64 on.", COUNT_OR_NONE
    )
    spike: float = option(
        0.5, "Stop when the loss gives back this share of its progress for 5 records; 0: never.", NOT_NEGATIVE
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.keep_at is not None:
            object.__setattr__(self, "keep_at", tuple(sorted(self.keep_at)))
        choose("objective", self.objective, ("autoregressive", "bert"))
        choose("schedule", self.schedule, ("cosine", "constant"))
        choose("parallel", self.parallel, ("none", "ddp", "fsdp"))
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        check_ranges(self)
        _ = self.transform, self.model_config  # their own checks, now rather than later

    @property
    def transform(self) -> ImageTransform:
        """How pictures are prepared for this run."""
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Rebuild from `to_dict` or from JSON."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"Unknown training settings {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**values)


def choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose {' or '.join(choices)}.")
