"""Reading files from elsewhere: what is plain data, and what forged files can't do."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_load import rezipped

from trvae.io._reading import NotPlainDataError, read_pickle, read_torch


def torch_file(program: bytes) -> bytes:
    """A file of PyTorch with this pickle, and the storage "0" of three floats."""
    file = io.BytesIO()
    torch.save(torch.zeros(3), file)
    return rezipped(file.getvalue(), lambda _: b"\x80\x02" + program + b".")


def read(path, program):
    """Read a pickle by itself and as a part of PyTorch's file."""
    (path / "plain.pkl").write_bytes(b"\x80\x02" + program + b".")
    (path / "torch.pt").write_bytes(torch_file(program))
    for reader, name in ((read_pickle, "plain.pkl"), (read_torch, "torch.pt")):
        yield lambda reader=reader, name=name: reader(path / name), name


def text(value: bytes) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value


def numbers(*values: int) -> bytes:
    return (
        b"(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in values) + b"t"
    )


def dtype(name: bytes, state: bytes = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00") -> bytes:
    return b"cnumpy\ndtype\n(" + text(name) + b"\x89\x88tR(K\x03" + text(b"<") + state + b"tb"


def array(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    reconstruct = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00", n: bytes = b"K\x03") -> bytes:
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + n
    arguments = storage + b"tQ" + offset + size + stride + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


BYTES = b"c_codecs\nencode\n(" + text(b"AAAAAAAA") + text(b"latin1") + b"tR"
FORGED = {
    "lists of lists": b"]"
    + b"".join(b"q%c](" % i + b"h%c" % i * 10 + b"e" for i in range(11)),
    "a list in itself": b"]q\x00h\x00a",
    "deep tuples": b"(" * 10_000 + b"N" + b"t" * 10_000,
    "a huge index": b"]r\xff\xff\xff\xffN\x86",
    "a tuple as key": b"}N\x85Ns",
    "a type as data": b"cnumpy\ndtype\n",
    "a set": b"\x8f",
    "an unfinished array": array(numbers(1), dtype(b"f8"), BYTES)[:-20] + b".",
    "an attribute of a name": b"cnumpy._core.multiarray\nscalar\nN}" + text(b"x") + b"Ns\x86b",
    "addresses as objects": array(numbers(1), dtype(b"O8", b"NNN" + b"K\x00" * 3), BYTES),
    "a negative size": array(numbers(4), dtype(b"U4", b"NNNJ\xf0\xff\xff\xffK\x04K\x08"), BYTES),
    "fields": array(numbers(1), dtype(b"V8"), BYTES),
    "dates": array(numbers(1), dtype(b"M8[s]"), BYTES),
    "a type of no name": b"cnumpy\ndtype\n]\x85R",
    "an array in an array": array(numbers(1), dtype(b"O8"), b"]]a"),
    "a wrong shape": array(numbers(2), dtype(b"f8"), BYTES),
    "a negative shape": array(numbers(-1, -1), dtype(b"f8"), BYTES),
    "countless empty strings": array(numbers(10**12), dtype(b"U0"), b"c__builtin__\nbytes\n)R"),
    "countless objects": b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\xff\xff\xff\x7f"
    + b"\x85U\x01OtR",
    "countless bytes": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "a tensor beyond its numbers": tensor(numbers(4), numbers(1)),
    "a tensor before its numbers": tensor(numbers(1), numbers(1), offset=b"J\xff\xff\xff\xff"),
    "one number countless times": tensor(numbers(10**12), numbers(0)),
    "a storage that is too short": tensor(numbers(3), numbers(1), n=b"M\xff\xff"),
    "a storage as data": tensor(b"", b"").split(b"\n", 2)[2][1:].split(b"K\x00", 1)[0],
    "an unknown instruction": b"\xff",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("program", FORGED.values(), ids=FORGED)
def test_forged_pickles_are_refused(tmp_path, program):
    for load, name in read(tmp_path, program):
        with pytest.raises(ValueError, match=name):
            load()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_code_is_not_run(tmp_path, function, protocol):
    class Runs:
        def __reduce__(self):
            return function, (code,)

    proof, path = tmp_path / "proof", tmp_path / "file"
    code = f"touch {proof}" if function is os.system else f"open({str(proof)!r}, 'w')"
    path.write_bytes(pickle.dumps({"a": Runs()}, protocol))
    with pytest.raises(NotPlainDataError, match=rf"asks for \w+\.{function.__name__}, .* not run"):
        read_pickle(path)
    torch.save({"a": Runs()}, path)
    with pytest.raises(NotPlainDataError, match=rf"asks for \w+\.{function.__name__}, .* not run"):
        read_torch(path)
    assert not proof.exists()
    # It would have been run.
    torch.load(path, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize(
    "forge",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda tensor: {1, 2},
        lambda tensor: np.array(["2020-01-01"], "datetime64[D]"),
        lambda tensor: np.array([np.arange(2), "a"], object),
    ],
)
def test_what_no_model_has_is_refused(tmp_path, forge):
    torch.save(forge(torch.arange(6.0)), tmp_path / "model.pt")
    with pytest.raises(NotPlainDataError, match="model.pt was not loaded: it (asks for|has)"):
        read_torch(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"\0" + data,
        lambda data: data.replace(b"data.pkl", b"data.plk"),
        # PyTorch itself would not notice.
        lambda data: data.replace(b"treated", b"trained"),
        lambda data: rezipped(data, lambda program: program[:-2]),
        lambda data: rezipped(data, lambda program: program, compression=8),
        lambda data: pickle.dumps({"a": 1}),
    ],
)
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "model.pt"
    torch.save({"names": ["treated"], "weights": torch.zeros(1000)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="model.pt is damaged, or not a file of"):
        read_torch(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_torch(path)


def test_what_is_read_is_what_was_saved(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    content = {
        "tensors": [
            whole, whole.T, whole[1:, ::2], torch.zeros(0), torch.tensor(3),
            *(torch.ones(3, dtype=getattr(torch, name)) for name in (
                "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
            )),
        ],
        "arrays": [
            np.arange(6).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.array(["b", "äb"]),
            np.array(["x", None, 3], object), np.zeros(0), np.array([True, False]),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(3, dtype=">i4"),
        ],
        "scalars": [
            np.float32(0.5), np.int64(3), np.str_("a"), np.str_(""), np.bool_(True), b"\xff", b"",
            None,
        ],
        7: (1, 2**40, -1.5, {"a": "ä"}, float("inf")),
    }  # fmt: skip
    torch.save(content, tmp_path / "file.pt")
    read = read_torch(tmp_path / "file.pt")
    assert list(read) == list(content)
    for ours, theirs in zip(read["tensors"], content["tensors"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for ours, theirs in zip(read["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
        assert type(ours) is np.ndarray
    assert read["scalars"] == content["scalars"]
    assert [type(value) for value in read["scalars"][:5]] == [float, int, str, str, bool]
    assert read[7] == content[7]
    for protocol in (0, 2, 4):
        (tmp_path / "file.pkl").write_bytes(pickle.dumps(content["scalars"], protocol))
        assert read_pickle(tmp_path / "file.pkl") == content["scalars"]


def test_files_of_numpy_1_and_2(tmp_path):
    torch.save([np.arange(3), np.float32(2)], tmp_path / "2.pt")
    data = (tmp_path / "2.pt").read_bytes()
    of_numpy_1 = rezipped(data, lambda program: program.replace(b"numpy._core", b"numpy.core"))
    (tmp_path / "1.pt").write_bytes(of_numpy_1)
    assert data != of_numpy_1
    for name in ("1.pt", "2.pt"):
        values, number = read_torch(tmp_path / name)
        assert (values.tolist(), number) == ([0, 1, 2], 2)


def test_what_users_declare_safe_stays_so_and_changes_nothing(tmp_path):
    torch.save(np.arange(3), tmp_path / "file.pt")
    from numpy._core.multiarray import _reconstruct

    theirs = [np.ndarray, np.dtype, (_reconstruct, "numpy._core.multiarray._reconstruct"), Path]
    with torch.serialization.safe_globals(theirs):
        before = set(torch.serialization.get_safe_globals())
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read_torch, [tmp_path / "file.pt"] * 20))
        assert set(torch.serialization.get_safe_globals()) == before
    assert all(values.tolist() == [0, 1, 2] for values in found)
    torch.save(Path("a"), tmp_path / "file.pt")
    with torch.serialization.safe_globals(theirs), pytest.raises(NotPlainDataError):
        read_torch(tmp_path / "file.pt")
