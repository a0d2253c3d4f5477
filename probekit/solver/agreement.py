"""Factorisations that the ranks of a sharded fit make of what they all hold: rank 0's, on every rank.

Sums over ranks are the same on each, but a factor of them need not be: another processor, or another library version,
differs in the last bit, an eigenvector in its sign. Ranks that go on with factors of their own decide differently when
to stop, and wait for one another for ever.
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
                sent = part.contiguous()  # LAPACK's factors are stored by columns
                torch.distributed.broadcast(sent, 0)
                part.copy_(sent)
        return result


def rank_zero_factors(sharded: bool) -> AbstractContextManager[Any]:
    """While the body runs, every factorisation is rank 0's, if the rows are sharded."""
    return _RankZero() if sharded else nullcontext()
