"""A GPU that is not there: tensors that say they are on `cuda:0`, hold their values on the CPU, and refuse company.

Inside `fake_cuda()` every torch call is looked at before it runs. A tensor made on, or moved to, a CUDA device is a
`FakeCuda`; an operation on one of these and a CPU tensor of one dimension or more raises, as CUDA does; reading values
on the host without a move raises or is counted. What is counted: kernels, that is operations on such tensors below the
Python level, views excepted; syncs, for which the host would wait for the device; and the bytes of every tensor that
comes to the host.

Streams are kept apart: each numbers its operations, a tensor knows the stream and the number of the one that made it,
and reading it on another stream that has not waited for that number raises. Threads of a pool are watched as well.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
MEMORY = 80 << 30


class FakeCuda(Tensor):
    """A CPU tensor that says it is on the GPU."""


MOVES = {Tensor.cpu, Tensor.cuda, Tensor.to, torch.as_tensor, torch.tensor, torch.asarray, Tensor.copy_, Tensor.type}
SYNCS = {
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.nonzero,
    torch.nonzero, Tensor.unique, torch.unique, torch.equal, torch.linalg.cholesky, Tensor.__contains__,
}  # fmt: skip
HOST_ONLY = {Tensor.numpy, Tensor.__array__}
VIEWS = {
    "view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "alias",
    "detach", "diagonal", "unbind", "split", "as_strided", "_unsafe_view", "lift_fresh", "unfold", "_reshape_alias",
    "expand_as", "split_with_sizes", "chunk", "empty", "empty_like", "new_empty", "empty_strided", "is_same_size",
    "_local_scalar_dense", "set_", "view_as_real", "_to_copy_view",
}  # fmt: skip


class Stream:
    """Operations in order, by number; `waited` says up to which number another stream's are over before the next."""

    local = threading.local()
    default: "Stream"

    def __init__(self, device: object = None) -> None:
        self.number, self.waited, self.finished = 0, {}, 0

    @classmethod
    def current(cls, device: object = None) -> "Stream":
        return getattr(cls.local, "stream", cls.default)

    @classmethod
    @contextmanager
    def use(cls, stream: "Stream | None") -> Iterator[None]:
        before = cls.current()
        cls.local.stream = stream or before
        yield
        cls.local.stream = before

    def wait_stream(self, other: "Stream") -> None:
        self.waited[other] = other.number

    def synchronize(self) -> None:
        self.finished = self.number

    def made(self, results: object) -> None:
        """Note that one more operation of this stream makes these."""
        self.number += 1
        for tensor in filter(is_fake, tree_leaves(results)):
            tensor._made = (self, self.number)

    def check(self, name: str, tensor: Tensor) -> None:
        """Raise if this stream may read the tensor before it is made."""
        maker, number = getattr(tensor, "_made", (self, 0))
        if maker is not self and number > max(maker.finished, self.waited.get(maker, 0)):
            raise RuntimeError(f"{name}: the tensor is of another stream, which this one has not waited for")


Stream.default = Stream()


class Counts:
    """Kernels and syncs by name; (name, bytes) of what came to the host, (dtype, shape, pinned) of what left it."""

    def __init__(self) -> None:
        self.kernels: Counter = Counter()
        self.syncs: Counter = Counter()
        self.to_host: list[tuple[str, int]] = []
        self.to_device: list[tuple[torch.dtype, torch.Size, bool]] = []
        self.streams: set[Stream] = set()
        self.chosen: list[str] = []  # devices that were made the current one

    def wait(self, name: str, tensor: Tensor | None = None) -> None:
        """Note that the host waits for the current stream, and for which values."""
        self.syncs[name] += 1
        if tensor is not None:
            self.to_host.append((name, tensor.numel() * tensor.element_size()))
        Stream.current().synchronize()

    @property
    def host_bytes(self) -> int:
        return sum(size for _, size in self.to_host)

    @property
    def n_kernels(self) -> int:
        return sum(self.kernels.values())

    @property
    def n_syncs(self) -> int:
        return sum(self.syncs.values())


def is_fake(value: object) -> bool:
    return isinstance(value, FakeCuda)


def fake(tensor: Tensor) -> Tensor:
    return tensor if is_fake(tensor) else tensor.as_subclass(FakeCuda)


def plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if is_fake(tensor) else tensor


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__" and own is not None:
            return self._property(func, own)
        leaves = tree_leaves((args, kwargs))
        on_gpu = any(map(is_fake, leaves))
        if on_gpu and func in HOST_ONLY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        stream = Stream.current()
        if on_gpu:
            self.counts.streams.add(stream)
            for leaf in filter(is_fake, leaves):
                stream.check(name, leaf)
        if on_gpu and (func in SYNCS or self._masks(func, args)):
            self.counts.wait(name, own if func is Tensor.tolist else None)
        if func is Tensor.pin_memory:
            own = own.view_as(own)
            own._pinned = True
            return own
        if func is torch._has_compatible_shallow_copy_type:
            return False  # a module that moves gets new parameters, whose type says where they are
        target = self._target(func, args, kwargs)
        if func in (Tensor.cuda, Tensor.cpu) or (func is Tensor.to and target is not None):
            return self._move(own, target, args[1:], kwargs)
        if on_gpu and func not in MOVES:
            for leaf in leaves:
                if isinstance(leaf, Tensor) and not is_fake(leaf) and leaf.dim():
                    raise RuntimeError(
                        f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu"
                    )
        if target is not None:
            if on_gpu and target.type == "cpu":
                self.counts.wait(name, own)
            kwargs["device"] = torch.device("cpu")
        leaf = bool(target is not None and kwargs.pop("requires_grad", False))
        result = func(*args, **kwargs)
        if target is not None and isinstance(result, Tensor):
            result = fake(result) if target.type == "cuda" else plain(result)
        stream.made([result, own if name.endswith("_") else None])
        if func is Tensor.copy_ and is_fake(args[1]) and not is_fake(own):
            self.counts.wait("copy_ to the host", args[1])
        if func is Tensor.copy_ and not is_fake(own):
            return own
        return result.requires_grad_() if leaf else result

    def _property(self, func, own):
        if is_fake(own):
            if func == Tensor.device.__get__:
                return DEVICE
            if func == Tensor.is_cuda.__get__:
                return True
            if func == Tensor.is_cpu.__get__:
                return False
            if func == Tensor.grad.__get__:
                found = func(own)
                return None if found is None else fake(found)
        return func(own)

    @staticmethod
    def _masks(func, args):
        if func not in (Tensor.__getitem__, Tensor.__setitem__):
            return False
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        masks = [part for part in index if isinstance(part, Tensor) and part.dtype == torch.bool]
        # a mask that is filled with one number needs no count of its rows
        return bool(masks) and not (func is Tensor.__setitem__ and not isinstance(args[2], Tensor))

    @staticmethod
    def _target(func, args, kwargs):
        if func is Tensor.cuda:
            return DEVICE
        if func is Tensor.cpu:
            return torch.device("cpu")
        found = kwargs.get("device")
        if func is Tensor.to and found is None and len(args) > 1:
            found = args[1].device if isinstance(args[1], Tensor) else args[1]
            found = DEVICE if isinstance(args[1], Tensor) and is_fake(args[1]) else found
            found = None if isinstance(found, torch.dtype) else found
        return None if found is None else torch.device(found)

    def _move(self, own, target, rest, kwargs):
        stream = Stream.current()
        if is_fake(own):
            stream.check("move", own)
        if is_fake(own) and target.type == "cpu":
            self.counts.wait("to the host", own)
        dtype = kwargs.get("dtype", next((part for part in rest if isinstance(part, torch.dtype)), own.dtype))
        moved = is_fake(own) != (target.type == "cuda")
        if moved and target.type == "cuda":  # a cast in the same call is made before the copy
            self.counts.to_device.append((dtype, own.shape, getattr(own, "_pinned", False)))
        result = own.to(dtype, copy=moved or kwargs.get("copy", False))
        result = fake(result) if target.type == "cuda" else plain(result)
        stream.made([result])
        return result


class _Kernels(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name not in VIEWS and any(map(is_fake, tree_leaves((args, kwargs)))):
            self.counts.kernels[name] += 1
        return func(*args, **(kwargs or {}))


class _Generator(torch._C.Generator):
    """A generator for the GPU that draws on the CPU."""

    def __new__(cls, device="cpu"):
        return torch._C.Generator.__new__(cls, device="cpu")


@contextmanager
def fake_cuda(devices: int = 1, model: Callable[[], str] = lambda: "FAKE") -> Iterator[Counts]:
    """While the body runs there are CUDA devices, by default one, and what is done on them is counted."""
    counts, submit = Counts(), ThreadPoolExecutor.submit

    def watched_submit(pool, function, /, *args, **kwargs):
        def watched(*args, **kwargs):
            with _Functions(counts), _Kernels(counts):
                return function(*args, **kwargs)

        return submit(pool, watched, *args, **kwargs)

    with ExitStack() as stack:
        for name, value in {
            "is_available": lambda: True, "device_count": lambda: devices, "current_device": lambda: 0,
            "set_device": lambda device: counts.chosen.append(str(device)), "synchronize": lambda device=None: None,
            "mem_get_info": lambda device=None: (MEMORY, MEMORY), "memory_allocated": lambda device=None: 0,
            "memory_reserved": lambda device=None: 0, "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None, "empty_cache": lambda: None,
            "get_device_name": lambda device=None: model(), "is_bf16_supported": lambda *_, **__: True,
            "get_device_capability": lambda device=None: (9, 0), "get_rng_state": lambda device=None: torch.zeros(1),
            "get_rng_state_all": list, "set_rng_state_all": lambda states: None,
            "manual_seed_all": lambda seed: None, "Stream": Stream, "current_stream": Stream.current,
            "stream": Stream.use, "is_current_stream_capturing": lambda: False,
        }.items():  # fmt: skip
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        # optimisers of a CUDA build ask the driver about graphs; a CPU build has no accelerator
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", return_value=None))
        stack.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", watched_submit))
        stack.enter_context(_Functions(counts))
        stack.enter_context(_Kernels(counts))
        yield counts
