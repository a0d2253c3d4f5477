"""Any torch module as an encoder: forward hooks pool each named submodule's output as soon as it exists.

No hidden state is kept: a hook holds on to the pooled (B, width) rows only. Letters: B images, H and W sides.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from probekit.encoders.device import compute
from probekit.encoders.pooling import Layout, count_special_tokens, decide, first_tensor, map_axes
from probekit.encoders.preparation import Normalisation, Preparation, pair, triple
from probekit.encoders.weights import hash_weights, load_weights
from probekit.runtime.errors import UserError, first_line
from probekit.runtime.imports import import_object

Forward = Callable[[torch.nn.Module, torch.Tensor], Any]


def _plain_forward(module: torch.nn.Module, x: torch.Tensor) -> Any:
    return module(x)


def match_modules(module: torch.nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Names of the submodules that `wanted` names; in a glob, `*` stays within one level ("blocks.*").

    Raises
    ------
    UserError
        A name or glob fits none.
    """
    names = [name for name, _ in module.named_modules() if name]
    patterns = [p.strip() for p in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        levels = pattern.split(".")
        found = [
            name
            for name in names
            if len(parts := name.split(".")) == len(levels) and all(map(fnmatchcase, parts, levels))
        ]
        if not found:
            raise UserError(f"No submodule matches {pattern!r}; there are {_shown(names)}.")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _shown(names: Sequence[str], most: int = 30) -> str:
    shallow = sorted(names, key=lambda name: name.count("."))[:most]
    return ", ".join(name for name in names if name in set(shallow)) + (", ..." if len(names) > most else "")


@contextmanager
def failure_as_sentence(module: torch.nn.Module, sides: tuple[int, int]) -> Iterator[None]:
    """Turn whatever a model raises at its first forward pass into what to do about it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{type(module).__name__} fails on pictures of {sides[0]} x {sides[1]} ({type(error).__name__}: "
            f"{first_line(error)}); give the size that it takes (--resolution), "
            "or the call that it needs (forward= in Python)."
        ) from error


def preparation(
    resolution: int | None, resize: Any, crop: Any, interpolation: str | None, default: Preparation | None
) -> Preparation | None:
    """The user's --resolution, --resize, --crop, --interpolation over the model's own preparation."""
    if resolution is None and resize is None and crop is None:
        if default is None or interpolation is None:
            return default
        return Preparation(default.crop, default.resize, interpolation)
    size = crop if crop is not None else resolution if resolution is not None else resize
    kernel = interpolation or (default.interpolation if default else "bilinear")
    resize = tuple(resize) if isinstance(resize, list) else resize
    return Preparation(pair(size), resize, kernel)


class ModuleEncoder:
    """Pooled outputs of named submodules.

    Parameters
    ----------
    module : torch.nn.Module
        Put into evaluation mode; called with float (B, 3, H, W).
    layers : str or sequence of str
        Names or globs of submodules ("layer?", "blocks.*", "encoder.layers.*.mlp").
    pool : str
        "mean" (over patches or the map), "cls" or "both".
    prepare : callable, optional
        image HWC uint8 -> uint8 (H, W, 3) of one size, or float (3, H, W) already normalised; picklable.
    resolution, resize, crop, interpolation : optional
        Used when there is no `prepare`.
    mean, std : optional
        Of (x / 255 - mean) / std, for uint8 images; 0 and 1 if not given.
    axes : str, optional
        "BCHW", "BHWC", "BTD", "TBD" or "BD" where the shapes leave it open.
    prefix_tokens : int, optional
        Special tokens in front of the patches, where the parameters do not tell.
    forward : callable, optional
        (module, x) -> anything, instead of `module(x)`.
    names : mapping of module name to layer name, optional
    provenance : dict, optional
        Entries to add.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        layers: str | Sequence[str] | None = None,
        pool: str = "mean",
        prepare: Callable[[np.ndarray], Any] | None = None,
        resolution: int | None = None,
        resize: Any = None,
        crop: Any = None,
        interpolation: str | None = None,
        mean: Any = None,
        std: Any = None,
        axes: str | None = None,
        prefix_tokens: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        forward: Forward = _plain_forward,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        if layers is None:
            names = [name for name, _ in module.named_modules() if name]
            raise UserError(f"A torch module needs layers=, names or globs of its submodules: {_shown(names)}.")
        if prepare is None:
            prepare = preparation(resolution, resize, crop, interpolation, None)
            if prepare is None:
                raise UserError("A torch module needs prepare= or resolution= (--resolution): its input size.")
        elif not (resolution is resize is crop is None):
            raise UserError("prepare= and resolution, resize or crop were both given; give one of them.")
        self.prepare = prepare
        self._normalise = Normalisation(triple(0.0 if mean is None else mean), triple(1.0 if std is None else std))
        self._compute = compute(device, dtype)
        self._forward = forward
        self.module = module.to(self._compute.device).eval()
        self._layouts = self._decide(match_modules(module, layers), pool, axes, prefix_tokens)
        self.layers = tuple(self._layouts)
        self.widths = tuple(layout.width for layout in self._layouts.values())
        described = prepare.to_dict() if isinstance(prepare, Preparation) else repr(prepare)
        self.provenance: dict[str, Any] = {
            "name": type(module).__name__,
            "kind": "torch",
            "weights_hash": hash_weights(module),
            "config": {"class": f"{type(module).__module__}.{type(module).__qualname__}"},
            "pooling": pool,
            "norm": "the submodule's own output, nothing added",
            "resolution": list(self._sides),
            "preparation": described,
            "normalisation": self._normalise.to_dict() if self._scales else "done by prepare",
            "palette_hash": None,
            "decisions": {name: layout.to_dict() for name, layout in self._layouts.items()},
            **self._compute.to_dict(),
            **(provenance or {}),
        }

    def _decide(self, names: list[str], pool: str, axes: str | None, prefix_tokens: int | None) -> dict[str, Layout]:
        grey = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        example = np.asarray(self.prepare(grey))
        self._scales = example.dtype == np.uint8
        if example.ndim != 3 or (example.shape[2] if self._scales else example.shape[0]) != 3:
            raise UserError(
                f"prepare gave {example.dtype} {example.shape}, but uint8 (H, W, 3) or float (3, H, W) is needed."
            )
        self._sides = example.shape[:2] if self._scales else example.shape[1:]
        with failure_as_sentence(self.module, self._sides):
            shapes = [self._shapes(names, np.stack([example] * size)) for size in (2, 3)]
        idle = [name for name in names if name not in shapes[0]]
        if idle:
            raise UserError(f"The submodule {idle[0]} takes no part in the forward pass; choose other layers.")
        often = [name for name, found in shapes[0].items() if len(found) > 1]
        if often:
            count = len(shapes[0][often[0]])
            raise UserError(f"The submodule {often[0]} runs {count} times in a forward pass; choose other layers.")
        special = count_special_tokens(self.module)
        wide: dict[str, list[tuple[int, ...]]] = {}
        if axes is None and any(len(f[0]) == 4 and not map_axes(f[0], self._sides) for f in shapes[0].values()):
            # any failure means only that this model takes no other width: decide() then asks the user
            with suppress(Exception):
                wide = self._shapes(names, np.concatenate([np.stack([example] * 2)] * 2, axis=2 if self._scales else 3))
        # the order in which submodules finish is the depth
        return {
            name: decide(
                name,
                found[0],
                shapes[1][name][0],
                self._sides,
                special,
                pool,
                axes,
                prefix_tokens,
                wide[name][0] if name in wide else None,
            )
            for name, found in shapes[0].items()
        }

    def _shapes(self, names: Sequence[str], images: np.ndarray) -> dict[str, list[tuple[int, ...]]]:
        """Shapes of the named submodules' outputs, in the order in which they finish."""
        seen: dict[str, list[tuple[int, ...]]] = {}

        def note(name: str, output: torch.Tensor) -> None:
            seen.setdefault(name, []).append(tuple(output.shape))

        with self._hooked(names, note):
            self._run(images)
        return seen

    @contextmanager
    def _hooked(self, names: Sequence[str], receive: Callable[[str, torch.Tensor], None]) -> Any:
        handles = []
        try:
            for name in names:

                def hook(_: Any, __: Any, output: Any, name: str = name) -> None:
                    receive(name, first_tensor(output, name))

                handles.append(self.module.get_submodule(name).register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _run(self, images: np.ndarray) -> None:
        # somebody who shares the module may have trained it meanwhile
        if self.module.training:
            self.module.eval()
        device = self._compute.device
        x = self._normalise(images, device) if self._scales else self._compute.send(images)
        with self._compute.context():
            self._forward(self.module, x)

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, width) float32 tensor a layer; `row_ids_B` is not used, nothing here is random."""
        pooled: dict[str, torch.Tensor] = {}

        def pool(name: str, output: torch.Tensor) -> None:
            # cloned: a later in-place operation of the model must not reach into a returned row
            pooled[name] = self._layouts[name](output).clone()

        with self._hooked(self.layers, pool):
            self._run(images_BHWC)
        return [pooled[name] for name in self.layers]


def load_function(
    spec: str,
    weights: str | None = None,
    state_key: str | None = None,
    strip_prefix: str | None = None,
    **options: Any,
) -> ModuleEncoder:
    """`torch:package.module:function`: the function returns a module, or (module, prepare).

    Parameters
    ----------
    weights, state_key, strip_prefix : optional
        A weights file for the module, see `probekit.encoders.weights.load_weights`.
    **options
        As `ModuleEncoder` takes them; `layers` is needed.
    """
    made = import_object(spec)
    if callable(made) and not isinstance(made, torch.nn.Module):
        try:
            made = made()
        except Exception as error:  # whatever the user's own code raises
            raise UserError(
                f"{spec}, called without arguments, failed ({type(error).__name__}: {first_line(error)}); a function "
                "that returns a torch module, or (module, prepare), is needed (--debug shows where it failed)."
            ) from error
    module, prepare = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{spec} returned {type(made).__name__}, but a torch module, or (module, prepare), is needed.")
    if weights is not None:
        load_weights(module, weights, state_key, strip_prefix)
    if prepare is not None:
        options.setdefault("prepare", prepare)
    return ModuleEncoder(module, provenance={"name": spec.rpartition(":")[2], "function": spec}, **options)
