"""Files and folders are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from mhmoe_mm.storage import whole
from mhmoe_mm.storage.whole import (
    check_space,
    new_folder,
    point,
    publish_folder,
    recover,
    whole_file,
    write_bytes,
    write_text,
    write_whole,
)


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.write("half of it, and of a type that is not taken")  # pyright: ignore
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.json", b"old")]


def test_several_writers_of_one_file_do_not_meet(tmp_path: Path):
    """As when several programs of one sweep come to its report at the same time."""
    path = tmp_path / "a.json"

    def beside_another(part: Path) -> None:
        part.write_text("half")
        write_text(path, "of the other")
        part.write_text("whole")

    write_whole(path, beside_another)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "whole")]


def test_what_a_killed_writer_left_is_found(tmp_path: Path):
    """It ends as every unfinished file does, whatever its name before that."""

    def killed(part: Path) -> None:
        part.write_text("half")
        os.link(part, part.with_name("b" + part.name))
        raise Killed

    with pytest.raises(Killed):
        write_whole(tmp_path / "a.ckpt", killed)
    assert [line.split()[-1] for line in recover(tmp_path)] == ["completed"]
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """Nothing is cleaned up behind it, as behind a kill."""


def filled(path: Path, content: str) -> None:
    (new_folder(path) / "file").write_text(content)


@pytest.mark.parametrize("after", range(7))
def test_a_folder_is_replaced_wholly_wherever_the_writer_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    path = tmp_path / "step.ckpt"
    filled(path, "old")
    publish_folder(path)
    calls = []

    def counted(function):
        def call(*arguments, **options):
            if len(calls) == after:
                raise Killed
            calls.append(function.__name__)
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(whole, "sync", counted(whole.sync))
        patch.setattr(whole.os, "replace", counted(os.replace))
        patch.setattr(whole.shutil, "rmtree", counted(whole.shutil.rmtree))
        try:
            filled(path, "new")
            publish_folder(path)
        except Killed:
            pass
        else:
            pytest.fail("every step was reached")
    recover(tmp_path)
    renamed = calls.count("replace") == 2
    assert (path / "file").read_text() == ("new" if renamed else "old")
    assert [p.name for p in tmp_path.iterdir()] == ["step.ckpt"]


def test_what_killed_writers_left_is_told(tmp_path: Path):
    (tmp_path / "a.ckpt.part").write_text("half")
    filled(tmp_path / "b.ckpt", "half")
    (tmp_path / "c.ckpt.old").mkdir()
    lines = recover(tmp_path)
    assert [line.split()[-1] for line in lines] == ["completed"] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["c.ckpt"]
    assert recover(tmp_path) == []


def test_a_link_points_somewhere_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "last.ckpt"
    point(link, tmp_path / "a.ckpt")
    seen = []
    monkeypatch.setattr(
        whole.os, "replace", lambda *names: (seen.append(link.read_text()), os.rename(*names))
    )
    point(link, tmp_path / "b.ckpt")
    assert seen == ["a.ckpt"]
    assert link.read_text() == "b.ckpt"
    assert os.readlink(link) == "b.ckpt"


def test_too_little_room_is_refused_with_both_numbers(tmp_path: Path):
    check_space(tmp_path, 1)
    with pytest.raises(OSError, match=r"has \d+\.\d\d GB free, .* takes about 1000000\.00 GB"):
        check_space(tmp_path, 10**15)
