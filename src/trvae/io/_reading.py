"""Read model files, wherever they come from, without running code in them."""

from __future__ import annotations

import codecs
import io
import itertools
import math
import pickle
import pickletools
import threading
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

_SCALAR_TYPES = (str, bytes, int, float, type(None))
# Booleans, integers, floats, strings and objects.
_ARRAY_KINDS = "biufUO"
# Containers can hold one another many times over, so that a small file becomes a huge object.
_MAX_VALUES, _MAX_DEPTH = 200_000, 100


class NotPlainDataError(ValueError):
    """A file holds something other than tensors, arrays, numbers, strings and containers."""


def read_torch(path: Path) -> Any:
    """Read tensors and plain data that :func:`torch.save` wrote.

    Parameters
    ----------
    path
        The file, which is read once.

    Returns
    -------
    What was saved: tensors on the CPU, NumPy arrays, numbers, strings, lists, tuples and
    dictionaries. NumPy scalars become Python's, dictionaries of any kind plain ones.

    Raises
    ------
    ValueError
        If the file is damaged or forged, or holds anything else (:class:`NotPlainDataError`).
    FileNotFoundError
        If there is no such file.
    """
    return _read(path, _load_torch)


def read_pickle(path: Path) -> Any:
    """Read a pickle of plain data.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    As :func:`read_torch`, without tensors.

    Raises
    ------
    ValueError
        If the file is damaged or forged, or holds anything else (:class:`NotPlainDataError`).
    FileNotFoundError
        If there is no such file.
    """
    return _read(path, _load_pickle)


def _read(path: Path, load: Callable[[bytes], Any]) -> Any:
    data = path.read_bytes()
    try:
        return load(data)
    except NotPlainDataError as error:
        raise NotPlainDataError(f"{path} was not loaded: {error}") from error
    # A forged file makes the libraries raise anything.
    except Exception as error:
        raise ValueError(f"{path} is damaged, or not a file of tensors and plain data.") from error


def _load_torch(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        # PyTorch compresses nothing, so that no file takes more memory than it has bytes.
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not is_stored or sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("it is compressed")
        programs = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(programs) != 1 or not data.startswith(b"PK\x03\x04"):
            raise ValueError("it was not written by torch.save")
        # PyTorch doesn't compare checksums.
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
        program = archive.read(programs[0])
    # PyTorch admits more names than a model needs, some of which allocate any amount of memory.
    _check_program(program, _TORCH_NAMES)
    with _only_stand_ins_are_safe():
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _as_plain(content, itertools.count())


def _load_pickle(data: bytes) -> Any:
    _check_program(data)
    return _as_plain(_Unpickler(io.BytesIO(data)).load(), itertools.count())


def _check_program(program: bytes, other_names: Collection[str] = ()) -> None:
    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        # Python allocates memory up to the largest index.
        if opcode.name.endswith("PUT") and argument > len(program):
            raise ValueError("it refers to more objects than it holds")
        if opcode.name == "GLOBAL" and (name := argument.replace(" ", ".")) not in other_names:
            _stand_in(name)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _stand_in(f"{module}.{name}")
        # A pickle can set attributes of what it finds: here of a function made for it alone.
        return lambda *arguments: stand_in(*arguments)


def _stand_in(name: str) -> Callable[..., Any]:
    if name not in _STAND_INS:
        raise NotPlainDataError(
            f"it asks for {name}, which was not run. The file may be malicious."
        )
    return _STAND_INS[name]


@contextmanager
def _only_stand_ins_are_safe() -> Iterator[None]:
    """Let ``torch.load`` use the stand-ins, also where a user has declared NumPy's own safe."""
    with _LOCK:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        # PyTorch translates Python 2's names, under which builtins are pickled.
        torch.serialization.add_safe_globals(
            [(call, name.replace("__builtin__", "builtins")) for name, call in _STAND_INS.items()]
        )
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def _as_plain(value: Any, counter: Iterator[int], depth: int = 0) -> Any:
    """Return what was read with arrays in place of stand-ins, all of which must be plain data."""
    if depth > _MAX_DEPTH or next(counter) > _MAX_VALUES:
        raise ValueError("its containers are nested too deeply, or hold each other too often")
    if isinstance(value, _SCALAR_TYPES):
        return value
    if isinstance(value, _Array):
        return value.array
    if type(value) is torch.Tensor:
        # With a stride of 0, a tensor can be larger than what it is made of.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"it has too few numbers for a tensor of shape {tuple(value.shape)}")
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)([_as_plain(item, counter, depth + 1) for item in value])
    if isinstance(value, dict) and all(isinstance(key, _SCALAR_TYPES) for key in value):
        return {key: _as_plain(item, counter, depth + 1) for key, item in value.items()}
    raise NotPlainDataError(f"it has a {type(value).__name__}, which is not plain data.")


# ------------------------------------------------------------- what names stand for
# NumPy does not validate pickled state, so a forged file can read arbitrary memory. These check the
# state, and make new arrays.


class _Dtype:
    """Stands in for :class:`numpy.dtype`."""

    def __init__(self, name: str, *_: Any):
        if not isinstance(name, str):
            raise TypeError("it has a data type without a name")
        self.dtype = np.dtype(name)
        if self.dtype.kind not in _ARRAY_KINDS:
            raise NotPlainDataError(f"it has values of type {self.dtype}.")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for :class:`numpy.ndarray` and its reconstruction."""

    array: np.ndarray

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _make_array(shape, dtype.dtype, data, "F" if is_fortran else "C")


def _make_array(
    shape: tuple, dtype: np.dtype, data: bytes | list, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    if dtype.kind == "O":
        if not all(isinstance(value, _SCALAR_TYPES) for value in data):
            raise NotPlainDataError("it has an array of elements other than numbers and strings.")
        array = np.empty(len(data), object)
        array[:] = data
        return array.reshape(shape, order=order)
    size = math.prod(shape)
    # Empty strings take no bytes, however many there are.
    if len(data) != size * dtype.itemsize or size > len(data) + 1:
        raise ValueError(f"it has {len(data)} bytes for an array of shape {shape}")
    return np.ndarray(shape, dtype, bytearray(data), order=order)


def _make_scalar(dtype: _Dtype, data: bytes) -> Any:
    return _make_array((), dtype.dtype, data).item()


_LOCK = threading.Lock()
_TORCH_NAMES = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2"} | {
    f"torch.{kind}Storage"
    for kind in (
        "Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"
    )
}  # fmt: skip
_STAND_INS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": codecs.encode,
    "__builtin__.bytes": lambda: b"",
    "__builtin__.dict": lambda: {},
    "collections.defaultdict": lambda *_: {},
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    # As NumPy 1 and NumPy 2 name them.
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _make_scalar for core in ("core", "_core")},
}
