"""Any torch module as an encoder: forward hooks pool each named submodule's output as soon as it is computed.

Only the pooled (B, width) rows are kept, not the hidden states. Letters: B images, H and W sides.
"""

import copy
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from igpt_model.arguments import checked
from probekit.encoders.encoder import compute, encoder_repr, layer_patterns, select_layers, shown_names
from probekit.encoders.pooling import Layout, count_special_tokens, decide, first_tensor, has_class_token
from probekit.encoders.preparation import (
    DescribedPreparation,
    Normalisation,
    Preparation,
    described,
    first_images,
    odd_pictures,
    preparation,
    sides,
    triple,
)
from probekit.encoders.row_checks import check_features, check_prepare
from probekit.encoders.weights import Loaded, hash_weights, load_weights_of
from probekit.runtime.errors import UserError, explained, first_line
from probekit.runtime.imports import import_object

Forward = Callable[[torch.nn.Module, torch.Tensor], Any]
# torch.compile wraps a module and adds this level to the names of its submodules
COMPILED = "_orig_mod"


def submodules(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every submodule that has a forward pass (no ModuleList), by name without the level that torch.compile adds; the
    module itself is excluded."""
    named: dict[str, torch.nn.Module] = {}
    for name, part in module.named_modules():
        # for a compiled submodule, the inner module, which is listed last, replaces the wrapper
        if getattr(getattr(part, "forward", None), "__func__", None) is not torch.nn.Module.forward:
            named[".".join(level for level in name.split(".") if level != COMPILED)] = part
    named.pop("", None)
    return named


def match_modules(module: torch.nn.Module, wanted: str | int | Sequence[str | int]) -> list[str]:
    """Names of the submodules that match `wanted` (`select_layers`)."""
    names = list(submodules(module))
    return [names[k] for k in select_layers(names, wanted)]


SIZE_ADVICE = "give the image size that it takes (--resolution), or how to call it (forward= in Python)"
PREPARE_ADVICE = "let prepare return the image size that it takes, or give how to call it (forward= in Python)"


@contextmanager
def failure_as_sentence(module: torch.nn.Module, sides: tuple[int, int], advice: str = SIZE_ADVICE) -> Iterator[None]:
    """Convert any exception in a model's first forward pass to a `UserError` with advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        formats = {str(p.dtype).removeprefix("torch.") for p in module.parameters()} - {"float32"}
        if formats and "type" in str(error):
            kinds = " and ".join(sorted(formats))
            advice = f"its parameters are {kinds}: convert it with .float() (dtype= sets the format of computation)"
        if "ScriptModule" in str(error):
            advice = "choose layers outside this TorchScript program"
        raise UserError(
            f"{type(module).__name__} fails on images of {sides[0]} x {sides[1]} ({type(error).__name__}: "
            f"{first_line(error)}); {advice}."
        ) from error


def _observable(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside torch.compile's wrapper; refused if hooks do not work on it, or parameters have no values."""
    module = getattr(module, COMPILED, None) or module
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"{module.original_name} is a TorchScript program, which does not support hooks; give the original Python "
            "module."
        )
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta or torch.nn.parameter.is_lazy(value):
            raise UserError(
                f"{type(module).__name__} has no values for {name} (it is lazy, or on the meta device); load its "
                "weights first."
            )
    return module


class ModuleEncoder:
    """Pooled outputs of named submodules of `module`, which is set to evaluation mode and called with float (B, 3, H,
    W).

    Parameters
    ----------
    layers : str or sequence of str
        Names or globs of submodules ("layer?", "blocks.*", "encoder.layers.*.mlp").
    pool : str
        "mean" (over patches or the map), "cls" or "both".
    prepare : callable, optional
        Image HWC uint8 -> uint8 (H, W, 3) of fixed size, or normalised float (3, H, W); picklable. Alternatively give
        `resolution`, `resize`, `crop` and `interpolation`.
    mean, std : optional
        For (x / 255 - mean) / std of uint8 images; default 0 and 1.
    axes, prefix_tokens : optional
        "BCHW", "BHWC", "BTD", "TBD", "BDT" or "BD", and the number of special tokens in front of the patches, if shapes
        and parameters do not determine them. `suggested_prefix`, from the model's library, is used if it leaves a grid.
    forward : callable, optional
        (module, x) -> anything, called instead of `module(x)`.
    data : Dataset, optional
        Its first training images are used to determine shapes with a custom `prepare`, which may not accept every size.
    loaded : Loaded, optional
        What a weights file left out; refused if a chosen layer depends on it.

    Raises
    ------
    UserError
        The meaning of an output's axes is ambiguous, or the features of an image depend on random numbers, on the other
        images in its batch, or on the batch size.
    """

    __repr__ = encoder_repr

    @checked
    def __init__(
        self,
        module: torch.nn.Module,
        layers: str | int | Sequence[str | int] | None = None,
        pool: str = "mean",
        prepare: Callable[[np.ndarray], Any] | None = None,
        resolution: Any = None,
        resize: Any = None,
        crop: Any = None,
        interpolation: str | None = None,
        mean: Any = None,
        std: Any = None,
        axes: str | None = None,
        prefix_tokens: int | None = None,
        suggested_prefix: int | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        forward: Forward = operator.call,
        data: Any = None,
        loaded: Loaded | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        module = _observable(module)
        if layers is None or layer_patterns(layers) in ([], [""]):
            names = list(submodules(module))
            raise UserError(
                "A torch module needs layers= (--layers; in a study #layers=...), names or globs of its submodules: "
                f"{shown_names(names)}."
            )
        if prepare is not None and not (resolution is resize is crop is interpolation is None):
            raise UserError("prepare= and resolution, resize, crop or interpolation were both given; give one of them.")
        prepare = prepare or preparation(resolution, resize, crop, interpolation)
        if prepare is None:
            raise UserError("A torch module needs an input size; give prepare= or resolution= (--resolution).")
        self.prepare = prepare
        self._normalise = Normalisation(triple(0.0 if mean is None else mean), triple(1.0 if std is None else std))
        self._compute = compute(device, dtype)
        self._forward = forward
        # not chained: a module may override these, and return anything
        module.to(self._compute.device)
        with explained(
            f"{type(module).__name__} has no evaluation mode", "give the original Python module", named=True
        ):
            module.eval()
        self.module = module
        unused = None
        with suppress(Exception):  # a copy that shares the weights, but nothing else that a forward pass may change
            unused = copy.deepcopy(module, {id(value): value for value in module.state_dict(keep_vars=True).values()})
        self._eager = any(COMPILED in part._modules or part._compiled_call_impl for part in module.modules())
        own_prepare = isinstance(prepare, DescribedPreparation)
        examples = self._examples(None if own_prepare else data, own_prepare)
        unscaled = self._unscaled(mean is not None or std is not None)
        weights_hash = hash_weights(module)
        advice = SIZE_ADVICE if isinstance(prepare, Preparation) else PREPARE_ADVICE
        names = match_modules(module, layers)
        self._layouts = self._decide(names, examples, pool, axes, prefix_tokens, suggested_prefix, advice)
        self.layers = tuple(self._layouts)
        self.widths = tuple(layout.width for layout in self._layouts.values())
        loaded = loaded or Loaded()
        weights_hash = check_features(self, examples, axes is not None, loaded, weights_hash, unused)
        self.provenance: dict[str, Any] = {
            "name": type(module).__name__,
            "kind": "torch",
            "weights_hash": weights_hash,
            "config": {"class": f"{type(module).__module__}.{type(module).__qualname__}"},
            "pooling": pool,
            "norm": "the submodule's own output, nothing added",
            "resolution": list(self._sides),
            "preparation": described(prepare),
            "normalisation": self._normalise.to_dict() if self._scales else "done by prepare",
            "palette_hash": None,
            "decisions": {name: asdict(layout) for name, layout in self._layouts.items()},
            **loaded.to_dict(),
            **self._compute.to_dict(),
            **unscaled,
            **(provenance or {}),
        }

    def _unscaled(self, given: bool) -> dict[str, str]:
        """Provenance for images without mean and std; refused if the model was trained with some."""
        if not self._scales and given:
            raise UserError("prepare= returns normalised floats, so mean= and std= have no effect; leave them out.")
        if given or not self._scales:
            return {}
        own = getattr(self.module, "pretrained_cfg", None) or {}
        if {"mean", "std"} <= set(own):
            raise UserError(
                f"{type(self.module).__name__} was trained with mean={own['mean']} and std={own['std']} (its "
                "pretrained_cfg), but none were given; pass mean= and std=."
            )
        return {"input": "values from 0 to 1: no mean and std were given"}

    def _examples(self, data: Any, own: bool) -> np.ndarray:
        """Three different prepared images, stacked; from the data set if there is one."""
        if data is not None:
            pictures = first_images(data, 3, "a torch module")
            pictures = (pictures * 3)[:3]
        elif own:
            pictures = list(odd_pictures()[:3])
        else:
            pictures = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
        noise = "" if data is not None else "give data=, the data set, to try it on real images"
        what = f"prepare failed on an image of {pictures[0].shape[0]} x {pictures[0].shape[1]}"
        with explained(what, noise, named=True):
            made = [np.asarray(self.prepare(picture)) for picture in pictures]
        example = made[0]
        self._scales = example.dtype == np.uint8
        known = example.dtype in (np.uint8, np.float32) and example.ndim == 3
        if not known or example.shape[2 if self._scales else 0] != 3:
            raise UserError(
                f"prepare returned {example.dtype} {example.shape}; return uint8 (H, W, 3) or float32 (3, H, W)."
            )
        check_prepare(self.prepare, pictures, made)
        if any(x.shape != example.shape for x in made):
            raise UserError(f"prepare returned the shapes {made[0].shape} and {made[1].shape}; return one fixed size.")
        dropped = all(np.array_equal(x, example) for x in made)
        if dropped and not all(np.array_equal(picture, pictures[0]) for picture in pictures):
            warnings.warn(f"prepare returns the same for {len(made)} different images.", stacklevel=5)
        self._sides = sides(example)
        return np.stack(made)

    def _decide(
        self,
        names: list[str],
        examples: np.ndarray,
        pool: str,
        axes: str | None,
        prefix_tokens: int | None,
        suggested_prefix: int | None,
        advice: str,
    ) -> dict[str, Layout]:
        with failure_as_sentence(self.module, self._sides, advice):
            shapes = [self._shapes(names, examples[:size]) for size in (2, 3)]
        idle = [name for name in names if name not in shapes[0]]
        if idle:
            raise UserError(f"The submodule {idle[0]} is not used in the forward pass; choose other layers.")
        often = [name for name, found in shapes[0].items() if len(found) > 1]
        if often:
            count = len(shapes[0][often[0]])
            raise UserError(f"The submodule {often[0]} runs {count} times in a forward pass; choose other layers.")
        special = count_special_tokens(self.module) if suggested_prefix is None else suggested_prefix
        wide: dict[str, list[tuple[int, ...]]] = {}
        dimensions = {len(found[0]) for found in shapes[0].values()}
        if axes is None and (4 in dimensions or (3 in dimensions and prefix_tokens is None)):
            # a failure means only that this model does not accept another width: decide() then asks the user
            with suppress(Exception):
                wide = self._shapes(names, np.concatenate([examples[:2]] * 2, axis=2 if self._scales else 3))
        self._widened = set(wide)
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
                has_class_token(self.module),
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
        parts = submodules(self.module)
        try:
            for name in names:

                def hook(_: Any, __: Any, output: Any, name: str = name) -> None:
                    receive(name, first_tensor(output, name))

                handles.append(parts[name].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _run(self, images: np.ndarray, context: AbstractContextManager | None = None) -> None:
        # other code that shares the module may have switched it to training mode
        if self.module.training:
            self.module.eval()
        x = self._normalise(images, self._compute.device)
        # compiled parts run eagerly, since hooks inside them would not be called
        stance = torch.compiler.set_stance("force_eager") if self._eager else nullcontext()
        with context or self._compute.context(), stance:
            self._forward(self.module, x)

    def _pooled(self, images: np.ndarray, context: AbstractContextManager | None = None) -> dict[str, torch.Tensor]:
        pooled: dict[str, torch.Tensor] = {}

        def pool(name: str, output: torch.Tensor) -> None:
            layout = self._layouts[name]
            if output.ndim != len(layout.axes) or output.shape[layout.axes.index("B")] != len(images):
                raise UserError(
                    f"Layer {name} has shape {tuple(output.shape)} for a batch of {len(images)}, without a batch axis; "
                    "pass the axis to squeeze(), since the last batch of a data set may contain one image."
                )
            # cloned, so that in-place operations of the model cannot change returned rows
            pooled[name] = layout(output).clone()

        with self._hooked(list(self._layouts), pool):
            self._run(images, context)
        if idle := [name for name in self._layouts if name not in pooled]:
            raise UserError(
                f"The submodule {idle[0]} did not run for a batch of {len(images)}, but did for another; choose layers "
                "that every image passes."
            )
        return pooled

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, width) float32 tensor per layer; `row_ids_B` is unused, since nothing is random."""
        pooled = self._pooled(images_BHWC)
        return [pooled[name] for name in self.layers]


def load_function(spec: str, **options: Any) -> ModuleEncoder:
    """`torch:package.module:function`: the function returns a module or (module, prepare). A weights file can be loaded
    into the module (`load_weights_of`); other options are those of `ModuleEncoder`, of which `layers` is required."""
    made = import_object(spec)
    if callable(made) and not isinstance(made, torch.nn.Module):
        advice = "give a function that returns a torch module or (module, prepare) (--debug shows where it failed)"
        with explained(f"{spec}, called without arguments, failed", advice, named=True):
            made = made()
    module, prepare = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{spec} returned {type(made).__name__}; return a torch module or (module, prepare).")
    loaded = load_weights_of(module, options)
    if prepare is not None:
        options.setdefault("prepare", prepare)
    return ModuleEncoder(
        module, loaded=loaded, provenance={"name": spec.rpartition(":")[2], "function": spec}, **options
    )
