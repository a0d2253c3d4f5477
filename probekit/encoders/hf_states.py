"""Find the submodule of a Hugging Face model that computes each hidden state.

The model runs once with output_hidden_states, and each state is matched with the submodule that returned that same
tensor object. Letters: B images, k layers.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from probekit.encoders.hooks import failure_as_sentence
from probekit.encoders.pooling import first_tensor, parts_of
from probekit.runtime.errors import UserError

AFTER_NORM = "last_hidden_state, after the final norm"
# names for the blocks inside a stage in transformers
BLOCKS = ("blocks", "layers")


def find_hidden_states(model: Any, forward: Any, sides: tuple[int, int]) -> dict[str, str]:
    """Map submodules to the hidden states they compute, {submodule: "hidden_states[k]"}, or to blocks in stages."""
    # not a blank image: without biases all its states would be zero, and the last one equal to its norm
    image = torch.rand((1, 3, *sides), generator=torch.Generator().manual_seed(0))
    image = image.to(next(model.parameters()).device)
    with failure_as_sentence(model, sides):
        outputs, output = _run(model, forward, image)
    made: dict[int, list[str]] = {}
    for name, tensor in outputs:
        made.setdefault(id(tensor), []).append(name)
    states = getattr(output, "hidden_states", None)
    if not states:
        raise UserError(f"{type(model).__name__} returns no hidden states; use torch: and name submodules instead.")
    found: dict[str, str] = {}
    for k, state in enumerate(states):
        if state is image:  # DINOv3's ConvNeXt returns the image itself as the first state
            continue
        names = made.get(id(state)) or _reordered(outputs, state)
        if not names:
            raise UserError(
                f"hidden_states[{k}] of {type(model).__name__} is not the output of a submodule; use torch: and name "
                "submodules instead."
            )
        # if several return the same tensor, prefer a numbered block, else the outermost, which ends last
        block = [name for name in names if name.rpartition(".")[2].isdigit()]
        found[min(block, key=len) if block else names[-1]] = f"hidden_states[{k}]" + (
            "" if id(state) in made else ", whose positions are in another order"
        )
    last = getattr(output, "last_hidden_state", None)
    if last is not None and id(last) in made and last is not states[-1] and not torch.equal(last, states[-1]):
        maker = made[id(last)][-1]
        if sum(name == maker for name, _ in outputs) == 1:  # BLIP applies its norm to the pooled vector too
            found[maker] = AFTER_NORM
    stages, between = dict(found), {id(state) for state in states}
    for name, tensor in outputs:
        stage, _, number = name.rpartition(".")
        stage, _, kind = stage.rpartition(".")
        if stage in stages and kind in BLOCKS and number.isdigit() and id(tensor) not in between:
            found[name] = f"a block inside {stages[stage]}"
    return found


def _run(model: Any, forward: Any, image: torch.Tensor) -> tuple[list[tuple[str, torch.Tensor]], Any]:
    """What each submodule returned, in order, and the model's output; all are kept alive, so that ids stay unique."""
    outputs: list[tuple[str, torch.Tensor]] = []

    def note(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            with suppress(UserError):
                tensor = first_tensor(output, name)
                # more deeply nested tensors are outputs of inner modules, which have their own hooks
                if tensor is output or any(tensor is part for part in parts_of(output)):
                    outputs.append((name, tensor))

        return hook

    # an Identity returns the output of another submodule
    makers = {n: m for n, m in model.named_modules() if n and not isinstance(m, torch.nn.Identity)}
    handles = [module.register_forward_hook(note(name)) for name, module in makers.items()]
    try:
        with torch.no_grad():
            return outputs, forward(model, image, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()


def _reordered(outputs: Sequence[tuple[str, torch.Tensor]], state: torch.Tensor) -> list[str]:
    """The submodules whose output has exactly the positions of this state in a different order or form, such as Hiera's
    embedding, or PVTv2's tokens, which are reshaped to a map; the mean over positions is the same."""

    def positions(h: torch.Tensor) -> torch.Tensor:
        return torch.unique(h.flatten(0, -2), dim=0)

    as_tokens = state.flatten(2).mT if state.ndim == 4 else state
    return [
        name
        for name, h in outputs
        if h.ndim == 3
        and h.shape == as_tokens.shape
        and (torch.equal(h, as_tokens) or torch.equal(positions(h), positions(as_tokens)))
    ]
