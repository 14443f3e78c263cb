"""Files and folders are whole or absent, lines are whole, a folder has one owner."""

import errno
import multiprocessing
import os

import pytest

from patience import PATIENCE_S
from rdvla import files
from rdvla.errors import CheckpointError, ConfigError, StorageError


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(files, "_flush", full_disk)
    with pytest.raises(StorageError, match="disk is full"):
        files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; nothing was recorded"),
        ("{", "is not valid JSON .*; copy it again"),
        (b"\xff", "is not valid JSON .*; copy it again"),
        ("[]", "must hold a JSON object, found list; copy it again"),
        (files.LFS_POINTER, "git lfs pull"),
    ],
)
def test_what_is_no_json_object_is_said(tmp_path, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message):
        files.read_json(path, CheckpointError, "copy it again", missing="nothing was recorded")


def test_json_has_no_word_for_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "file.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    with files.replacing_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("a")
    with pytest.raises(StorageError, match="already exists"), files.replacing_folder(tmp_path / "out"):
        pass
    with pytest.raises(StorageError, match="disk is full"), files.replacing_folder(tmp_path / "out", replace=True):
        full_disk()
    with pytest.raises(RuntimeError), files.replacing_folder(tmp_path / "other"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "a"


def test_whoever_comes_second_does_not_replace_what_the_first_has_written(tmp_path):
    """Both found nothing there when they began."""

    def both():
        with files.replacing_folder(tmp_path / "f") as slow:
            (slow / "a").write_text("second")
            with files.replacing_folder(tmp_path / "f") as quick:
                (quick / "a").write_text("first")

    with pytest.raises(StorageError, match="already exists"):
        both()
    assert (tmp_path / "f" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_file_in_a_folders_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        files.write_atomically(tmp_path / "file" / "below", b"")


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "log"
    files.append_line(path, "one")
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(StorageError, match="disk is full"):
        files.append_line(path, "two")
    assert path.read_text() == "one\n"


def test_a_torn_last_line_is_no_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthr", encoding="utf-8")
    assert files.complete_lines(path) == ["one", "two"]
    files.cut_torn_line(path)
    assert path.read_text() == "one\ntwo\n"
    path.write_text("thr")
    assert files.complete_lines(path) == []


def _own(folder, owned, done):
    with files.owned_folder(folder, busy="busy"):
        owned.set()
        done.wait(PATIENCE_S)


def test_a_folder_has_one_owner(tmp_path):
    context = multiprocessing.get_context("spawn")
    owned, done = context.Event(), context.Event()
    other = context.Process(target=_own, args=(tmp_path / "run", owned, done))
    other.start()
    try:
        assert owned.wait(PATIENCE_S)
        with pytest.raises(ConfigError, match="busy"), files.owned_folder(tmp_path / "run", busy="busy"):
            pass
        assert (tmp_path / "run").is_dir(), "the one that was refused removed the owner's folder"
    finally:
        done.set()
        other.join(PATIENCE_S)
    assert not (tmp_path / "run").exists(), "nothing was left in it"
    with files.owned_folder(tmp_path / "run", busy="busy"):
        (tmp_path / "run" / "result").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_a_pointer_is_not_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8594928\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        files.refuse_pointer(path, CheckpointError)
    path.write_bytes(b"\x00" * 100)
    files.refuse_pointer(path, CheckpointError)


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert files.user_cache() == tmp_path / ".cache" / "rdvla"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert files.user_cache() == tmp_path / "c" / "rdvla"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(stream, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    message = r"cannot lock '.*': Function not implemented; its file system has no locks .* choose a folder on another"
    with pytest.raises(StorageError, match=message), files.owned_folder(tmp_path / "run", busy="busy"):
        pass
