"""A pretend accelerator, `device=sim`: computes on the CPU, and is as strict as CUDA.

Importing this module registers the device with torch, in a test or by a launcher:

    python -m tests.support.sim_device -m pgtg train summarize device=sim ...

Tensors on it refuse to meet the CPU's (but scalars and indices, as on CUDA), have no `numpy()` and
their own random generator, and whatever would make the host wait for a GPU is counted:

    with counted_syncs() as syncs:
        ...
    assert syncs.total() <= 2, syncs

| counted as | what |
|---|---|
| item | `item()`, `bool(t)`, `int(t)`, `float(t)`, and what calls them (`allclose`, ...) |
| tolist, to_cpu | `tolist()`; a copy to the CPU (with `non_blocking=True`: in `ASYNC`, apart) |
| nonzero, mask | `nonzero`, one-argument `where`; boolean masks as index, `masked_select` |
| unique, equal, bincount, repeat_interleave, multinomial | sizes or checks read by the host |
| synchronize | `torch.sim.synchronize()` |

What it cannot show: speed, a GPU kernel's own rounding, memory, streams (an asynchronous copy is
there at once, so a race does not show), CUDA graphs, several devices. It rests on torch's
experimental Python backends (torch.utils.backend_registration; tried with torch 2.13).
"""

import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "sim"
SYNCS: Counter[str] = Counter()  # since the import
ASYNC: Counter[str] = Counter()  # copies to the CPU that were asked not to wait
REFUSED: set[torch.dtype] = set()  # types that the device is to lack, as mps lacks float64

WAITS = {
    "_local_scalar_dense": "item",
    "allclose": "item",
    "nonzero": "nonzero",
    "masked_select": "mask",
    "equal": "equal",
    "_unique": "unique",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "unique_dim_consecutive": "unique",
    "bincount": "bincount",
    "multinomial": "multinomial",
}
# which torch makes by steps that a Python backend cannot follow
FACTORIES = ("tensor", "as_tensor", "asarray", "arange", "linspace", "randperm", "eye")
COPIES = {"_to_copy", "copy_", "_copy_from", "_local_scalar_dense", "set_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
MASKS = (torch.bool, torch.uint8)
# computed in the narrower type, and in float32 (or the widest), under CUDA's autocast
NARROW = """matmul mm addmm bmm baddbmm addbmm addmv mv linear conv1d conv2d
scaled_dot_product_attention"""
WIDE = """exp log log2 log10 log1p expm1 pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar rsqrt
reciprocal softplus layer_norm native_layer_norm rms_norm group_norm cross_entropy_loss nll_loss
mse_loss cosine_similarity cumsum cumprod sum sum.dim_IntList prod norm.Scalar cdist
softmax.int log_softmax.int binary_cross_entropy_with_logits"""

_open: list[Counter[str]] = []
_own_state: Tensor = torch.Generator().manual_seed(0).get_state()


@contextmanager
def counted_syncs() -> Iterator[Counter[str]]:
    """What makes the host wait for the device inside, by kind; counts as it goes."""
    counter: Counter[str] = Counter()
    _open.append(counter)
    try:
        yield counter
    finally:
        _open[:] = [each for each in _open if each is not counter]


@contextmanager
def refusing(dtype: torch.dtype) -> Iterator[None]:
    """The device lacks a type inside, as mps lacks float64."""
    REFUSED.add(dtype)
    try:
        yield
    finally:
        REFUSED.discard(dtype)


def _waits(kind: str) -> None:
    for counter in (SYNCS, *_open):
        counter[kind] += 1


class _Module:
    """What torch asks of a device's module, `torch.sim`.

    `is_available` is False unless the launcher (or a test) says otherwise, so that `device=auto`
    stays the CPU in a process that runs other tests too.
    """

    offered = False

    def is_available(self) -> bool:
        return self.offered

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def device(self, device: Any) -> Any:
        return nullcontext()

    def get_device_name(self, device: Any = None) -> str:
        return "pretend device"

    def synchronize(self, device: Any = None) -> None:
        _waits("synchronize")

    def empty_cache(self) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        self.set_rng_state(torch.Generator().manual_seed(seed).get_state())

    manual_seed = manual_seed_all

    def get_rng_state(self, device: Any = None) -> Tensor:
        return _own_state.clone()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        global _own_state
        _own_state = state.clone()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class Sim(Tensor):
    """A tensor that says it is on the pretend device; `inner` holds it on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Sim":
        if inner.dtype in REFUSED:
            raise TypeError(f"Cannot convert a {NAME} Tensor to {inner.dtype}: not supported")
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Sim({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = self.detach().clone()
            parameter = isinstance(self, nn.Parameter)
            own = nn.Parameter(copied, self.requires_grad) if parameter else copied
            memo[id(self)] = own if parameter else own.requires_grad_(self.requires_grad)
        return memo[id(self)]

    # with these two, `module.to(device)` exchanges what is inside a parameter, and keeps ties

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "Sim":
        return Sim(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def storage(self) -> Any:
        return self.inner.storage()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        _waits("tolist")
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_listless(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_listless(index), value)

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"device": self.device, "dtype": self.dtype} | kwargs)

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first"
        )

    __array__ = numpy


def _listless(index: Any) -> Any:
    """An index whose lists are tensors: torch would make them by steps of its own."""
    if isinstance(index, tuple):
        return tuple(map(_listless, index))
    return (
        torch.tensor(index, dtype=None if index else torch.long) if type(index) is list else index
    )


def _call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operator of the device: checked, counted, and computed on the CPU."""
    name, random = _known(func)
    here: list[Sim] = []
    elsewhere: list[Tensor] = []

    plain = [_inner(value, here, elsewhere) for value in args]
    named = {key: _inner(value, here, elsewhere) for key, value in kwargs.items()}
    wanted = kwargs.get("device")
    kind = None if wanted is None else torch.device(wanted).type
    if here and elsewhere and name not in COPIES:
        _check_devices(func, name, args, elsewhere)
    if random:
        _check_generator(kwargs.get("generator"))
    _count(name, args, kwargs, kind if here else None)
    if kind is not None:
        named["device"] = torch.device("cpu")
    if "pin_memory" in named:
        named["pin_memory"] = False
    if name in ("copy_", "_copy_from"):
        target, source = (0, 1) if name == "copy_" else (1, 0)
        plain[target].copy_(plain[source])
        return args[target]
    out = _with_own_generator(lambda: func(*plain, **named)) if random else func(*plain, **named)
    for tensor in here:
        if tensor.size() != tensor.inner.size():
            raise NotImplementedError(f"{func} resizes in place, which {NAME} cannot")
    if kind not in (None, NAME) or not (here or kind == NAME):
        return out
    return _outer(out, {id(tensor.inner): tensor for tensor in here})


def _inner(value: Any, here: list[Sim], elsewhere: list[Tensor]) -> Any:
    """What an argument holds on the CPU; its tensors are added to those of the two devices."""
    if isinstance(value, Sim):
        here.append(value)
        return value.inner
    if isinstance(value, Tensor):
        elsewhere.append(value)
    if isinstance(value, list | tuple):
        return [_inner(part, here, elsewhere) for part in value]
    return value


def _outer(value: Any, written: Mapping[int, Sim]) -> Any:
    """A result on the device; what was written in place stays the tensor that it was."""
    if isinstance(value, Tensor):
        return written[id(value)] if id(value) in written else Sim(value)
    if isinstance(value, list | tuple):
        return type(value)([_outer(part, written) for part in value])
    return value


@cache
def _known(func: Any) -> tuple[str, bool]:
    """An operator's name, and whether it draws random numbers."""
    return func.overloadpacket.__name__, torch.Tag.nondeterministic_seeded in func.tags


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Sim)


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and generator.device.type != NAME:
        found = f"but found '{generator.device.type}'"
        raise RuntimeError(f"Expected a '{NAME}' device type for generator {found}")


def _check_devices(func: Any, name: str, args: Sequence[Any], elsewhere: Sequence[Tensor]) -> None:
    """CUDA's rules: one device, but 0-dim tensors of the CPU, and indices of what is here.

    Raises:
        RuntimeError: Tensors of both devices.
    """
    indices = {id(index) for index in args[1]} if name in INDEXING else set()
    scalars = not name.startswith("_fused_")  # which take no tensor from elsewhere
    wrong = [
        tuple(tensor.shape)
        for tensor in elsewhere
        if not tensor.is_meta and id(tensor) not in indices and not (scalars and tensor.dim() == 0)
    ]
    if wrong:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! in {func}: {wrong}"
        )


def _count(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kind: str | None) -> None:
    """Count an operator that would make the host wait; `kind` is where its result is wanted."""
    if name in WAITS:
        _waits(WAITS[name])
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        _waits("repeat_interleave")
    elif name in INDEXING:
        masks = [index for index in args[1] if isinstance(index, Sim) and index.dtype in MASKS]
        value: Any = args[2] if len(args) > 2 else None
        # one mask and a number: CUDA fills, and asks nothing
        fills = len(args[1]) == 1 and _is_plain(value) and value.numel() == 1 and not any(args[3:])
        for _ in [] if fills else masks:
            _waits("mask")
    elif name == "_to_copy" and kind == "cpu":
        _copied(kwargs.get("non_blocking"))
    elif name in ("copy_", "_copy_from"):
        target, source = args[:2] if name == "copy_" else (args[1], args[0])
        if isinstance(source, Sim) and not isinstance(target, Sim):
            _copied(args[2] if len(args) > 2 else kwargs.get("non_blocking"))


def _copied(non_blocking: bool | None) -> None:
    if non_blocking:
        ASYNC["to_cpu"] += 1
    else:
        _waits("to_cpu")


def _with_own_generator(draw: Callable[[], Any]) -> Any:
    """A random operator, drawn from the device's generator; the CPU's is left as it was."""
    global _own_state
    cpu = torch.get_rng_state()
    torch.set_rng_state(_own_state)
    try:
        return draw()
    finally:
        _own_state = torch.get_rng_state()
        torch.set_rng_state(cpu)


def _autocast(library: torch.library.Library) -> None:
    """CUDA's rules of autocast for the operators that language models use."""
    key: Any = torch._C.DispatchKey  # whose stubs lack this one
    exclude = torch._C.DispatchKeySet(key.AutocastPrivateUse1)

    def rule(operator: Any, narrow: bool) -> Callable[..., Any]:
        def cast(tensor: Any) -> Any:
            floating = isinstance(tensor, Sim) and tensor.is_floating_point()
            if not floating or tensor.dtype == torch.float64:
                return tensor
            return tensor.to(torch.get_autocast_dtype(NAME) if narrow else torch.float32)

        def call(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(exclude):
                return operator(
                    *[cast(value) for value in args],
                    **{key: cast(value) for key, value in kwargs.items()},
                )

        return call

    for names, narrow in ((NARROW, True), (WIDE, False)):
        for full in names.split():
            packet, _, overload = full.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(full, rule(operator, narrow), "AutocastPrivateUse1")


def _factory(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory that a Python backend cannot serve: made on the CPU, then moved."""

    def made(*args: Any, **kwargs: Any) -> Tensor:
        wanted = kwargs.get("device")
        if wanted is None or torch.device(wanted).type != NAME:
            return make(*args, **kwargs)
        trained = kwargs.pop("requires_grad", False)  # the tensor of the device, not its copy
        out = make(*args, **kwargs | {"device": None}).to(NAME)
        return out.requires_grad_() if trained else out

    return made


def _register() -> list[torch.library.Library]:
    """Make the device known to torch; what is returned has to live as long as the process."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda op, *args, **kwargs: _call(op, args, kwargs), "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _autocast(aten)
    _device_constructors()  # kept from now on: `with torch.device(...)` knows functions by identity
    for name in FACTORIES:
        setattr(torch, name, _factory(getattr(torch, name)))
    return [everything, aten]


_libraries = _register()

if __name__ == "__main__":
    usage = "usage: python -m tests.support.sim_device -m MODULE ARGUMENTS..."
    assert sys.argv[1:2] == ["-m"] and len(sys.argv) > 2, usage
    sys.modules["tests.support.sim_device"] = sys.modules["__main__"]
    _Module.offered = True
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
