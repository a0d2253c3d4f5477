"""The optimiser and its learning rate: AdamW with beta2 0.95, linear warm-up, cosine to zero (FACTS section 3)."""

import math

import torch
from torch import nn


def learning_rate(step: int, peak: float, warmup_steps: int, steps: int, schedule: str = "cosine") -> float:
    """Return the rate of update number `step` (from 0).

    Linear from `peak / warmup_steps` to `peak`, then half a cosine to 0 after `steps` updates, or constant.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the parameters: the blocks' matrices decay, while embeddings, gains, biases and a classifier's head do not.

    The paper found that a decay of 0.01 made no difference; 0 is the default.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name.removeprefix("igpt.").startswith("h.")
            groups[not decays].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def make_optimizer(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """Build AdamW in its fused form: one kernel a tensor list, on CPU as on CUDA."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=1e-8, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state by parameter name, e.g. "h.0.ln_1.g/exp_avg": safetensors holds it, no pickle."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value).detach()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back, whole ones also where the parameters are split among ranks."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        # fused and capturable AdamW keep `step` where the parameter lives; the moments have its layout
        optimizer.state[parameter][key] = (
            like(parameter, tensor) if tensor.ndim else tensor.clone().to(parameter.device)
        )


def start_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Give every parameter AdamW's state before a first update, to be filled in place; return it as tensors by name."""
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer_tensors(model, optimizer)


def like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a whole tensor where, and split as, the parameter is."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.clone().to(parameter.device)
