"""Atomic writes: at any moment there is the old content or the new one."""

import os

import pytest

from periodic_jax.core import files
from periodic_jax.core.files import replace_folder, write_atomically


class Killed(BaseException):
    pass


def die(*arguments, **options):
    raise Killed


def die_within(folder, shared=False):
    with replace_folder(folder, shared=shared) as draft:
        draft.mkdir()
        die()


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_all_is_written(tmp_path):
    file = tmp_path / "x"
    write_atomically(file, b"old")

    def write(opened):
        opened.write(b"new")
        opened.flush()
        assert file.read_bytes() == b"old"

    write_atomically(file, write, sync_folder=True)
    assert file.read_bytes() == b"new"
    with pytest.raises(Killed):
        write_atomically(file, die)
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "x", b"")
    assert file.read_bytes() == b"new"
    assert listed(tmp_path) == ["x"]


def test_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    """The order that survives a loss of power: content, name, and where asked for the folder."""
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    write_atomically(tmp_path / "x", lambda file: done.append("written"), sync_folder=True)
    assert done == ["written", str(tmp_path / "x.partial"), str(tmp_path)]


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_is_replaced_when_it_is_complete(tmp_path, shared):
    folder = tmp_path / "store"
    for content in ("old", "new"):
        with replace_folder(folder, shared=shared) as draft:
            draft.mkdir()
            (draft / content).touch()
        assert listed(folder) == [content]
    with pytest.raises(Killed):
        die_within(folder, shared)
    assert listed(folder) == ["new"]
    with replace_folder(tmp_path / "file", shared=shared) as draft:
        draft.write_text("x")
    assert listed(tmp_path) == ["file", "store"]


def test_a_folder_whose_process_was_killed_between_the_renames_comes_back(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "old").touch()
    folder.rename(tmp_path / "store.old.partial")
    with pytest.raises(Killed):
        die_within(folder)
    assert listed(folder) == ["old"]
    rename = type(folder).replace

    def refuse(self, target):
        if self.name == "store.partial":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "replace", refuse)
    with pytest.raises(OSError, match="No space left"), replace_folder(folder) as draft:
        draft.mkdir()
    assert listed(folder) == ["old"]
    assert listed(tmp_path) == ["store"]


def test_json_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": [1, "ü\n"]})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert files.read_json(tmp_path / "x.json") == {"a": [1, "ü\n"]}
    assert listed(tmp_path) == ["x.json"]


@pytest.mark.parametrize("replace", [files.replace_file, files.replace_folder])
def test_nothing_is_built_through_a_link_and_nothing_behind_it_is_removed(tmp_path, replace):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").write_text("mine")
    (tmp_path / "x.partial").symlink_to(precious)
    with replace(tmp_path / "x") as draft:
        assert not draft.is_symlink()
        draft.write_text("new")
    assert (tmp_path / "x").read_text() == "new"
    assert listed(precious) == ["kept"]
    assert listed(tmp_path) == ["precious", "x"]


def test_a_file_takes_the_place_of_a_file_and_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "x").write_text("old")
    with replace_folder(tmp_path / "x") as draft:
        draft.write_text("new")
    assert (tmp_path / "x").read_text() == "new"
    assert listed(tmp_path) == ["x"]
