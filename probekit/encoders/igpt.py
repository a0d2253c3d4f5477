"""iGPT as an encoder: a run's checkpoint, the same model with new random weights, or an untrained preset.

Letters: B images, P pixels a side, T = P * P tokens.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igpt_model.arguments import checked
from igpt_model.config import PRESETS, ModelConfig
from igpt_model.devices import check_compiler
from igpt_model.features import encode, layer_names, pool
from igpt_model.hashing import hash_arrays
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.objectives import draw_masks
from igpt_model.palette import Palette
from igpt_model.ranges import check_at_least
from igpt_model.training.checkpoint import Checkpoint, check_checkpoint, check_latest, load_checkpoint
from probekit.encoders.encoder import compute, encoder_repr, select_layers
from probekit.runtime.errors import UserError


class IGPTEncoder:
    """Pooled features of an iGPT's layers; `igpt_model.features` defines "layer k".

    Images are prepared by the model's own `transform` without augmentation. `norm` applies the norm that reads a layer
    next (False: the raw residual stream); blocks above the deepest of `layers` are not computed. A BERT model gets
    `masked` inputs, as in training and in the paper's probes; masks depend on (`seed`, row id). `compile` compiles each
    block, which takes a minute and pays off for many images on a GPU; the last digits differ. With `tokens` a row
    contains the features of every position (T * n_embd columns) instead of their mean, as an attentive probe needs.
    """

    __repr__ = encoder_repr

    @checked
    def __init__(
        self,
        model: IGPT,
        palette: Palette,
        transform: ImageTransform,
        name: str = "igpt",
        norm: bool = True,
        layers: str | int | Sequence[str | int] | None = None,
        masked: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        compile: bool = False,
        tokens: bool = False,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        config = model.config
        if len(palette) != config.vocab_size:
            raise UserError(
                f"The palette has {len(palette)} colours but the model has {config.vocab_size}; use the model's own."
            )
        if transform.resolution**2 != config.n_positions:
            raise UserError(
                f"Images of {transform.resolution} x {transform.resolution} pixels do not match the model's "
                f"{config.n_positions} positions; give the resolution that it was built for."
            )
        self._compute = compute(device, dtype)
        self.model = model.to(self._compute.device).eval()
        if compile:
            check_compiler(self._compute.device)
            for block in self.model.blocks:
                block.compile()
        self.palette, self.norm, self.seed = palette, norm, seed
        self.masked = masked and not config.causal
        self.prepare: Callable[[np.ndarray], np.ndarray] = ImageTransform(transform.resolution, transform.resize)
        names = layer_names(config)
        self._chosen = select_layers(names, layers)
        self.layers = tuple(names[k] for k in self._chosen)
        self.tokens = tokens
        self.widths = (config.n_embd * (config.n_positions if tokens else 1),) * len(self.layers)
        self.provenance: dict[str, Any] = {
            "name": name,
            "kind": "igpt",
            "weights_hash": hash_arrays(model.state_dict()),
            "config": config.to_dict(),
            "pooling": "mean over positions, in float32",
            "norm": "the norm that reads the state next (ln_1 of the following block, ln_f at the end)"
            if norm
            else "none",
            "input": _input_rule(config.causal, self.masked, config.mask_prob, seed),
            "resolution": transform.resolution,
            "preparation": {"resize": transform.resize, "crop": "centre square, then resize"},
            "palette_hash": palette.hash,
            **self._compute.to_dict(),
            **({"compiled": True} if compile else {}),
            # a subset of layers: store their depths, so that curves do not number them from 0
            **({"depths": self._chosen, "last_depth": len(names) - 1} if len(self._chosen) < len(names) else {}),
            **(provenance or {}),
        }
        if tokens:
            self.provenance |= {
                "pooling": "none: all positions, one after the other",
                "tokens": config.n_positions,
                "depths": self._chosen,
            }

    def inputs(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, T) of prepared images, and their masks if inputs are masked."""
        tokens_BT = self._compute.send(self.palette.encode(images_BHWC).astype(np.int64))
        if not self.masked:
            return tokens_BT, None
        mask_BT = draw_masks(row_ids_B, tokens_BT.shape[1], self.model.config.mask_prob, self.seed)
        return tokens_BT, self._compute.send(mask_BT)

    @torch.no_grad()
    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, n_embd) float32 tensor per layer, from uint8 (B, P, P, 3); (B, T * n_embd) with `tokens`."""
        tokens_BT, mask_BT = self.inputs(images_BHWC, row_ids_B)
        with self._compute.context():
            if not self.tokens:
                return [X.float() for X in encode(self.model, tokens_BT, self.norm, mask_BT, self._chosen)]
            states = zip(range(self._chosen[-1] + 1), self.model.hidden_states(tokens_BT, mask_BT), strict=False)
            # each position is passed as a sequence of length 1, whose mean is itself, so that `pool` defines "layer k"
            return [
                pool(self.model, k, h_BTD.reshape(-1, 1, h_BTD.shape[2]), self.norm).reshape(len(h_BTD), -1).float()
                for k, h_BTD in states
                if k in self._chosen
            ]


def _input_rule(causal: bool, masked: bool, mask_prob: float, seed: int) -> str:
    if causal:
        return "start vector, then all pixels but the last"
    return f"pixels masked with probability {mask_prob:g} from (seed {seed}, row id)" if masked else "all pixels"


def load_run(run: str, **options: Any) -> IGPTEncoder:
    """`igpt:RUN`, the newest checkpoint of a run folder; `igpt:RUN@STEP`, that step; or a checkpoint folder itself."""
    checkpoint = load_checkpoint(find_checkpoint(run))
    about = {
        "checkpoint": str(checkpoint.path or run),
        "step": checkpoint.step,
        "weights_hash": checkpoint.weights_hash,
        "training": checkpoint.provenance,
    }
    return IGPTEncoder(checkpoint.model, checkpoint.palette, checkpoint.transform, provenance=about, **options)


def find_checkpoint(run: str) -> Checkpoint:
    """The checkpoint of RUN or RUN@STEP, or in the folder RUN itself, checked and without its weights."""
    folder, at, step = run.rpartition("@")
    if at and re.fullmatch("[0-9]{1,15}", step) and not Path(run).exists():
        return check_latest(folder, int(step))
    if not Path(run).is_dir():
        raise UserError(f"The run folder {run!r} does not exist; give a folder written by `probekit train`.")
    # a checkpoint folder itself, with weights in one file or in shards
    whole = any((Path(run) / name).exists() for name in ("weights.safetensors", "weights"))
    return check_checkpoint(run) if whole else check_latest(run)


def load_random(
    source: str, resolution: int | None = None, n_colours: int = 512, weights_seed: int = 0, **options: Any
) -> IGPTEncoder:
    """`random:PRESET`, an untrained iGPT with a fixed RGB-grid palette, or `random:RUN`, a run's config and palette.

    `resolution` and `n_colours` apply to presets. `weights_seed` should differ from the seed of the training run, whose
    model started from the weights of that seed.
    """
    check_at_least(resolution=(resolution, 1))
    about: dict[str, Any] = {"weights_seed": weights_seed}
    if source in PRESETS:
        side = 32 if resolution is None else resolution
        config = ModelConfig.preset(source, n_positions=side * side, vocab_size=n_colours)
        palette, transform = Palette.rgb_grid(n_colours), ImageTransform(side)
        about["of"] = f"preset {source}, RGB-grid palette"
    elif Path(source.rpartition("@")[0] or source).is_dir() or Path(source).is_dir():
        if resolution is not None:
            raise UserError(f"A resolution was given with random:{source}, but the run defines it; leave it out.")
        checkpoint = load_checkpoint(find_checkpoint(source))
        config, palette, transform = checkpoint.config, checkpoint.palette, checkpoint.transform
        about["of"] = f"config and palette of {source}"
        if hash_arrays(IGPT(config, weights_seed).state_dict()) == checkpoint.weights_hash:
            about["note"] = "these are the run's own initial weights"
    else:
        raise UserError(f"random:{source} is not known; give a preset ({', '.join(PRESETS)}) or a run folder.")
    model = IGPT(config, seed=weights_seed)
    return IGPTEncoder(model, palette, transform, "random", provenance=about, **options)


def load_tokens(spec: str, **options: Any) -> IGPTEncoder:
    """`tokens:igpt:RUN[@STEP]`, `tokens:random:RUN` or `tokens:random:PRESET`: every position's features."""
    scheme, _, rest = spec.partition(":")
    loaders: dict[str, Callable[..., IGPTEncoder]] = {"igpt": load_run, "random": load_random}
    if scheme not in loaders or not rest or rest.startswith(("hf:", "timm:")):
        raise UserError(f"tokens:{spec} is not known; write tokens:igpt:RUN or tokens:random:RUN.")
    return loaders[scheme](rest, tokens=True, **options)
