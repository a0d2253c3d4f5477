"""Use rank 0's matrix factorisations on every rank of a sharded fit.

Sums over ranks are identical on every rank, but their factorisations need not be: with a different processor or library
version they differ in the last bit, or an eigenvector in its sign. Ranks with different factors would decide
differently when to stop, and then wait for each other forever.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FACTORISATIONS = {
    torch.linalg.eigh, torch.linalg.eigvalsh, torch.linalg.cholesky, torch.linalg.cholesky_ex, torch.linalg.qr,
    torch.linalg.svd, torch.linalg.solve, torch.linalg.inv, torch.linalg.pinv, torch.cholesky_inverse,
}  # fmt: skip


class _RankZero(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FACTORISATIONS:
            for part in [result] if isinstance(result, Tensor) else result:
                sent = part.contiguous()  # LAPACK returns factors in column-major order
                torch.distributed.broadcast(sent, 0)
                part.copy_(sent)
        return result


def rank_zero_factors(sharded: bool) -> AbstractContextManager[Any]:
    """If the rows are sharded, use rank 0's factorisations on all ranks during the body."""
    return _RankZero() if sharded else nullcontext()
