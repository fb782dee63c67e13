"""Reading tensors and plain data from pickles without running code."""

from __future__ import annotations

import io
import math
import pickletools
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


# All that reading, or using, what is damaged or forged can raise.
DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError,
    RuntimeError, TypeError, ValueError, zipfile.BadZipFile,
)  # fmt: skip


_TENSOR_TYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8,
}  # fmt: skip


# Of arrays: booleans, integers, floats and strings.
_ARRAY_KINDS = "biufU"


_SCALAR_TYPES = (str, bytes, int, float, type(None))


# Containers can hold one another many times over, so that a small pickle would be a large object.
_MOST_VALUES, _DEEPEST = 1_000_000, 100


# Instructions whose argument is a value.
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


_TABLES = {"pandas", "pyarrow"}


class OtherThingsError(ValueError):
    """That a file holds, as far as can be told undamaged, other things than plain data."""


class LeftOut:
    """In place of a table of pandas, whose pickles change with its versions."""


@dataclass(frozen=True)
class _Named:
    """What a name in a pickle stands for; it is no data."""

    call: Callable[..., Any]


class _Unfinished:
    """An object whose state comes later in the pickle."""

    def __init__(self, finish: Callable[[Any], Any]):
        self.finish = finish
        self.memorised_as: list[int] = []


def read_pickle(path: Path) -> Any:
    """Read a pickle of numbers, strings and containers of them.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    What was pickled; scalars of NumPy become Python's.

    Raises
    ------
    ValueError
        If it is damaged, or names anything but scalars of NumPy.
    """
    with _telling_of(path):
        return _Reader(_SCALARS).read(path.read_bytes())


def read_torch(path: Path) -> Any:
    """Read what :func:`torch.save` wrote of tensors, arrays, numbers, strings and containers.

    Parameters
    ----------
    path
        The file, which is read once.

    Returns
    -------
    What was saved, tensors on the CPU; dictionaries of other kinds become ordinary ones, scalars of
    NumPy Python's, and tables of pandas :class:`LeftOut`.

    Raises
    ------
    ValueError
        If it is damaged, or holds other things.
    """
    with _telling_of(path):
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_archive(archive, len(data))


@contextmanager
def _telling_of(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        kind = OtherThingsError if isinstance(error, OtherThingsError) else ValueError
        raise kind(
            f"{path} is damaged, or holds other things than tensors and plain data: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    entries = archive.infolist()
    # PyTorch compresses nothing, so that no file can be larger in memory than it is on disk.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("a part of it is compressed.")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its parts are more than the file.")
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError("it is not of the format that PyTorch has had since 1.6.")
    folder = programs[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        byteorder = archive.read(f"{folder}byteorder").decode()
        if byteorder != sys.byteorder:
            raise ValueError(f"its numbers are {byteorder}-endian, not as this machine's.")
    storages: dict[str, torch.Tensor] = {}

    def load_storage(description: tuple) -> torch.Tensor:
        kind, named, key, _, n = description
        if kind != "storage":
            raise ValueError("it asks for something beside the file.")
        if _as(str, key) not in storages:
            numbers = archive.read(f"{folder}data/{key}")
            storages[key] = _storage(numbers, _as(_Named, named).call(), _as(int, n))
        return storages[key]

    return _Reader(_SCALARS | _ARRAYS | _TENSORS, load_storage).read(archive.read(programs[0]))


class _Reader:
    """Follows the program of a pickle.

    Parameters
    ----------
    known
        What stands for the names that are known.
    load_storage
        What loads the numbers of a tensor, if it is a file of PyTorch.
    """

    def __init__(self, known: _Known, load_storage: Callable[[tuple], torch.Tensor] | None = None):
        self._known = known
        self._load_storage = load_storage
        self._stack: list[Any] = []
        # Stacks that go on when all since a mark is gathered.
        self._waiting: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, pickled: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        value = self._stack.pop()
        _count(value, {})
        return value

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in _VALUES:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self._waiting.append(stack)
                self._stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(values)))
            case "TUPLE":
                values = self._marked()
                self._stack.append(tuple(values))
            case "LIST":
                values = self._marked()
                self._stack.append(values)
            case "DICT":
                values = self._marked()
                self._stack.append(_fill({}, values))
            case "APPEND":
                value = stack.pop()
                _as(list, stack[-1]).append(value)
            case "APPENDS":
                values = self._marked()
                _as(list, self._stack[-1]).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _fill(_as(dict, stack[-1]), [key, value])
            case "SETITEMS":
                values = self._marked()
                _fill(_as(dict, self._stack[-1]), values)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memorise(argument)
            case "MEMOIZE":
                self._memorise(len(self._memo))
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._look_up(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._look_up(_as(str, module), _as(str, attribute)))
            case "REDUCE" | "NEWOBJ":
                arguments, named = stack.pop(), stack.pop()
                stack.append(_as(_Named, named).call(*_as(tuple, arguments)))
            case "BUILD":
                self._finish(stack.pop())
            case "BINPERSID" if self._load_storage is not None:
                stack.append(self._load_storage(_as(tuple, stack.pop())))
            case _:
                raise ValueError(f"it has the instruction {name}, which plain data don't need.")

    def _look_up(self, module: str, attribute: str) -> _Named:
        if (module, attribute) in self._known:
            return _Named(self._known[module, attribute])
        if self._load_storage is not None and module.split(".")[0] in _TABLES:
            return _Named(_leave_out)
        raise OtherThingsError(
            f"it asks for {module}.{attribute}, which was not run. Don't trust it."
        )

    def _marked(self) -> list[Any]:
        values, self._stack = self._stack, self._waiting.pop()
        return values

    def _memorise(self, key: int) -> None:
        value = self._memo[key] = self._stack[-1]
        if isinstance(value, _Unfinished):
            value.memorised_as.append(key)

    def _finish(self, state: Any) -> None:
        unfinished = self._stack[-1]
        # A network's weights come with the versions of its layers, which are not needed.
        if isinstance(unfinished, dict | LeftOut):
            return
        value = self._stack[-1] = _as(_Unfinished, unfinished).finish(state)
        for key in unfinished.memorised_as:
            self._memo[key] = value


def holds_left_out(value: Any) -> bool:
    """Whether there is something :class:`LeftOut` in what was read."""
    return isinstance(value, LeftOut) or any(map(holds_left_out, _held(value)))


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _count(value: Any, counts: dict[int, int | None], depth: int = 0) -> int:
    """Count the values in what was read, all of which must be data, repeated ones repeatedly."""
    known = counts.get(id(value), 0)
    if known is None or depth > _DEEPEST:
        raise ValueError("it has containers that hold themselves, or too many within another.")
    if known:
        return known
    if not isinstance(
        value, (*_SCALAR_TYPES, dict, list, tuple, np.ndarray, torch.Tensor, LeftOut)
    ):
        raise TypeError("it has a name where data should be.")
    counts[id(value)] = None
    n = 1 + sum(_count(held, counts, depth + 1) for held in _held(value))
    if n > _MOST_VALUES:
        raise ValueError("it has containers that hold others many times over.")
    counts[id(value)] = n
    return n


def _as(expected: type, value: Any) -> Any:
    if not isinstance(value, expected):
        raise TypeError(f"it has a {type(value).__name__} in place of a {expected.__name__}.")
    return value


def _fill(filled: dict, items: list[Any]) -> dict:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Others could take for ever to be hashed.
        if not isinstance(key, _SCALAR_TYPES):
            raise TypeError(f"it has a dictionary with a key of type {type(key).__name__}.")
        filled[key] = value
    return filled


def _leave_out(*_: Any) -> LeftOut:
    return LeftOut()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("it has bytes that are not in latin1.")
    return text.encode(encoding)


def _empty_bytes() -> bytes:
    return b""


def _empty_dict(*_: Any) -> dict:
    return {}


def _dtype(name: str, *_: Any) -> _Unfinished:
    dtype = np.dtype(_as(str, name))
    if dtype.kind not in _ARRAY_KINDS + "O":
        raise OtherThingsError(f"it has values of type {dtype}.")
    return _Unfinished(lambda state: dtype.newbyteorder(state[1]))


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    if _as(np.dtype, dtype).kind not in _ARRAY_KINDS:
        raise ValueError(f"it has values of type {dtype}.")
    return np.frombuffer(data, dtype, count=1).item()


def _array(*_: Any) -> _Unfinished:
    return _Unfinished(lambda state: _filled_array(*state))


def _filled_array(
    _: int, shape: tuple, dtype: np.dtype, is_fortran: bool, data: bytes | list
) -> np.ndarray:
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    size = _product(shape)
    if _as(np.dtype, dtype).kind == "O":
        if not all(isinstance(value, _SCALAR_TYPES) for value in _as(list, data)):
            raise OtherThingsError("it has an array of other things than numbers and strings.")
        array = np.empty(len(data), object)
        array[:] = data
        return array.reshape(shape, order=order)
    if len(_as(bytes, data)) != size * dtype.itemsize:
        raise ValueError(f"it has {len(data)} bytes for an array of the shape {shape}.")
    return np.ndarray(shape, dtype, bytearray(data), order=order)


def _storage(data: bytes, dtype: torch.dtype, n: int) -> torch.Tensor:
    if len(data) != n * dtype.itemsize:
        raise ValueError(f"it has {len(data)} bytes for {n} numbers of type {dtype}.")
    # PyTorch takes nothing from an empty buffer.
    return torch.frombuffer(bytearray(data), dtype=dtype) if n else torch.empty(0, dtype=dtype)


def _tensor(
    storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any
) -> torch.Tensor:
    # A stride of 0 would make a tensor of any size.
    if _product(size) > _as(torch.Tensor, storage).numel():
        raise ValueError(f"it has {storage.numel()} numbers for a tensor of the shape {size}.")
    return storage.as_strided(size, stride, offset)


def _product(shape: tuple) -> int:
    if not all(isinstance(n, int) and n >= 0 for n in _as(tuple, shape)):
        raise ValueError("it has a shape that is not of whole numbers.")
    return math.prod(shape)


def _returning(value: Any) -> Callable[[], Any]:
    return lambda: value


_Known = dict[tuple[str, str], Callable[..., Any]]


# NumPy's and PyTorch's own are replaced, as forged arguments can make them read memory that isn't
# theirs. PyTorch writes the builtins' name of Python 2.
_SCALARS: _Known = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


_ARRAYS: _Known = {
    ("__builtin__", "bytes"): _empty_bytes,
    ("__builtin__", "dict"): _empty_dict,
    ("collections", "defaultdict"): _empty_dict,
    # Parts of tables.
    ("__builtin__", "bytearray"): _leave_out,
    ("__builtin__", "slice"): _leave_out,
    ("numpy", "ndarray"): _array,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
}


_TENSORS: _Known = {
    ("collections", "OrderedDict"): _empty_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    **{("torch", f"{name}Storage"): _returning(dtype) for name, dtype in _TENSOR_TYPES.items()},
}
