import errno
import os

import pytest

from trvae.io._atomic import atomic_update, atomic_write, write_first


@pytest.mark.parametrize(
    ("write", "before", "left"),
    [
        (atomic_write, {}, ".folder.unfinished"),
        (atomic_update, {}, ".folder.unfinished"),
        (atomic_update, {"file": "old", "other": "kept"}, "folder/.unfinished"),
    ],
)
def test_a_folder_is_as_before_until_all_is_written(tmp_path, write, before, left):
    folder = tmp_path / "folder"
    # What a killed process left.
    (tmp_path / left).mkdir(parents=True)
    (tmp_path / left / "half").touch()
    for name, text in before.items():
        (folder / name).write_text(text)

    def write_and_raise(error=None):
        with write(folder) as unfinished:
            unfinished.mkdir()
            (unfinished / "file").write_text("new")
            if error is not None:
                raise error

    for error, expected, message in (
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(28, "disk full"), OSError, "folder could not be written: disk full"),
        (RuntimeError("torch failed"), OSError, "folder could not be written: torch failed"),
    ):
        with pytest.raises(expected, match=message):
            write_and_raise(error)
        assert {path.name: path.read_text() for path in folder.glob("*")} == before
        assert not (tmp_path / left).exists()
    write_and_raise()
    assert {path.name: path.read_text() for path in folder.iterdir()} == before | {"file": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("exists", [True, False])
def test_parts_of_a_folder_are_written_side_by_side(tmp_path, exists):
    folder = tmp_path / "folder"
    if exists:
        folder.mkdir()
    with atomic_update(folder, "a") as a, atomic_update(folder, "b") as b:
        for part, name in ((a, "a"), (b, "b")):
            part.mkdir()
            (part / name).write_text(name)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "a", "b": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_first_file_stays(tmp_path, monkeypatch, has_links):
    if not has_links:

        def no_links(*_):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
    for text in ("first", "second"):
        write_first(tmp_path / "file", text)
    assert (tmp_path / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1
