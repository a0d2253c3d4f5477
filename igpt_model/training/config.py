"""The settings of a training run: the one source of the command line's flags, their defaults and their help."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.images import ImageTransform

MODEL, DATA, OPTIMISATION = "Model", "Data", "Optimisation"
LOGS, HARDWARE = "Checkpoints and logs", "Hardware"


def option(default: Any, help: str, group: str | None = None) -> Any:
    """Return a dataclass field with its default, and the help text and group that the command line shows."""
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of pre-training; the defaults are the paper's where it gives them (FACTS section 3).

    Two choices are ours: gradients are clipped at norm 1 (the paper does not mention clipping; 0 turns it off) and the
    warm-up is given in steps (the paper warms up for one epoch).
    """

    model: Literal["tiny", "S", "M", "L", "XL"] = option("tiny", "Preset of the transformer.", MODEL)
    n_layer: int | None = option(None, "Number of blocks, instead of the preset's.", MODEL)
    n_embd: int | None = option(None, "Width of the residual stream, instead of the preset's.", MODEL)
    n_head: int | None = option(None, "Attention heads, instead of the preset's.", MODEL)
    objective: Literal["autoregressive", "bert"] = option(
        "autoregressive", "Predict the next pixel (autoregressive) or masked pixels (bert).", MODEL
    )
    mask_prob: float = option(0.15, "Probability that a pixel is masked (bert).", MODEL)
    resolution: int = option(32, "Side of the images in pixels; the model reads resolution^2 tokens.", DATA)
    resize: str = option("bilinear", "Pillow filter that resizes images to the resolution.", DATA)
    n_colours: int = option(512, "Colours in the palette (512 is the paper's 9 bits).", DATA)
    augment: tuple[str, ...] = option(
        (), "Random augmentation of training images: resize_crop:256:384:224, flip, pad_crop:4.", DATA
    )
    steps: int = option(1000, "Number of updates.", OPTIMISATION)
    batch_size: int = option(128, "Images per update, over all ranks.", OPTIMISATION)
    micro_batch: int = option(
        0, "Images per forward pass on each rank; gradients are accumulated over the batch. 0: all at once.", HARDWARE
    )
    lr: float = option(0.003, "Peak learning rate; the paper lowers it by 3 until training is stable.", OPTIMISATION)
    warmup_steps: int = option(100, "Updates over which the learning rate rises to its peak.", OPTIMISATION)
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "Learning rate after the warm-up; cosine ends at 0.", OPTIMISATION
    )
    betas: tuple[float, float] = option(
        (0.9, 0.95), "Adam's betas; a second of 0.999 causes loss spikes.", OPTIMISATION
    )
    weight_decay: float = option(0.0, "AdamW's decay of the blocks' matrices; the paper uses none.", OPTIMISATION)
    clip: float = option(1.0, "Largest norm of the gradient; 0: no clipping.", OPTIMISATION)
    seed: int = option(0, "Seed of weights, palette, order, augmentation and masks.", OPTIMISATION)
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
    threads: int = option(0, "CPU threads; 0: PyTorch's choice. Exact resuming needs the same number.", HARDWARE)
    log_every: int = option(10, "Updates between records of the training loss.", LOGS)
    eval_every: int = option(250, "Updates between validation losses.", LOGS)
    eval_images: int = option(1024, "Validation images used, evenly spaced.", LOGS)
    checkpoint_every: int = option(250, "Updates between checkpoints.", LOGS)
    keep_last: int = option(3, "Newest checkpoints that are kept with their optimiser state.", LOGS)
    keep_at: tuple[int, ...] | None = option(
        None, "Steps whose checkpoints are kept for good; by default powers of two from 64 on.", LOGS
    )
    spike: float = option(
        0.5, "Stop when the loss has risen by this share of its total decrease for 5 records; 0: never.", LOGS
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.keep_at is not None:
            object.__setattr__(self, "keep_at", tuple(sorted(self.keep_at)))
        positive = ("steps", "batch_size", "log_every", "eval_every", "eval_images", "checkpoint_every", "keep_last")
        check_settings(
            self, positive, ("seed", "warmup_steps", "clip", "weight_decay", "micro_batch", "threads", "spike")
        )
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Rebuild from `to_dict` or from JSON."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"Unknown training settings {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**values)


def check_settings(config: Any, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """Check the values of a frozen dataclass: closed lists by their types, numbers by their least values.

    Raises
    ------
    UserError
        A value is out of range; the message names it.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            raise UserError(f"{name} is {getattr(config, name)!r}; choose {' or '.join(get_args(hint))}.")
    for name in positive:
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; give at least 1.")
    for name in not_negative:
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}; give 0 or more.")
    if not config.lr > 0:
        raise UserError(f"lr is {config.lr}; give a learning rate above 0.")
