"""Tensors split among ranks, in a folder of safetensors files: one a rank, through torch.distributed.checkpoint.

Any number of ranks reads what any number wrote: each file's header says which part of a tensor it holds. No pickle.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from igpt_model.errors import UserError


def write_shards(folder: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's parts of the tensors; every rank must call it. Tensors that all ranks hold are written once."""
    from torch.distributed import checkpoint as dcp

    with _quiet():
        dcp.save(dict(tensors), storage_writer=_storage("HuggingFaceStorageWriter")(str(folder), save_distributed=True))


def fill_from_shards(folder: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Read into the given tensors, each rank what it holds of them; every rank must call it."""
    from torch.distributed import checkpoint as dcp

    with _quiet():
        dcp.load(dict(tensors), storage_reader=_storage("HuggingFaceStorageReader")(str(folder)))


def read_shards(folder: str | Path) -> dict[str, Tensor]:
    """Return the whole tensors, on the processor, asking no other rank."""
    from torch.distributed import checkpoint as dcp

    with _quiet():
        reader = _storage("HuggingFaceStorageReader")(str(folder))
        known = reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in known.items()}
        dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    return tensors


def _storage(name: str) -> type:
    from torch.distributed import checkpoint as dcp

    if not hasattr(dcp, name):
        raise UserError(f"Sharded checkpoints need torch 2.8 or newer, and this is {torch.__version__}; upgrade torch.")
    return getattr(dcp, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about a checkpoint that one process reads or writes alone: it is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
