"""A build is stopped at every step that touches the disk, and then run again.

The second run must leave what an undisturbed one leaves, byte for byte.
"""

import errno
import os
import shutil
import tarfile
from collections.abc import Callable

import pytest

from tests.tools.making import build_shapes, tree
from tools import check_shards

BUILD = ("--train", "3", "--val", "0", "--test", "0", "--size", "16", "--shard-size", "2")
STEPS = [
    (os, "fsync"),
    (os, "replace"),
    (tarfile.TarFile, "addfile"),
    (shutil, "rmtree"),
]


def count_down(patch: pytest.MonkeyPatch, at: int, after: bool, stop: Callable[[], None]) -> list:
    """Call `stop` before or after step number `at`; returns a list that grows with each step."""
    done: list[str] = []

    def stopping(name, original):
        def step(*arguments, **options):
            done.append(name)
            mine = len(done) - 1 == at
            if mine and not after:
                stop()
            result = original(*arguments, **options)
            if mine and after:
                stop()
            return result

        return step

    for owner, name in STEPS:
        patch.setattr(owner, name, stopping(name, getattr(owner, name)))
    return done


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        steps = count_down(patch, -1, False, lambda: None)
        assert build_shapes(folder, *BUILD) == 0
    assert {name for _, name in STEPS} == set(steps)
    return tree(folder), len(steps)


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("stop", "code", "sentence"),
    [(interrupt, 130, "Interrupted"), (fill_disk, 2, "No space left on device")],
)
def test_an_exception_at_any_step_is_told_and_mended(
    tmp_path, capsys, undisturbed, stop, code, sentence, after
):
    expected, num_steps = undisturbed
    for at in range(num_steps):
        out = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            count_down(patch, at, after, stop)
            assert build_shapes(out, *BUILD) == code
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
        assert not list(out.rglob("*.part"))
        assert build_shapes(out, *BUILD) == 0
        assert tree(out) == expected


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_leaves_no_shard_that_looks_whole_and_is_not(
    tmp_path, capsys, undisturbed, after
):
    expected, num_steps = undisturbed
    for at in range(num_steps):
        out = tmp_path / str(at)
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                count_down(patch, at, after, lambda: os._exit(9))
                build_shapes(out, *BUILD)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        for path, content in tree(out).items():
            if path.endswith(".tar"):
                assert content == expected[path]
                index = path.replace(".tar", ".index.json")
                assert tree(out)[index] == expected[index]
        finished = (out / "card.json").exists()
        if (out / "plan.json").exists():
            assert (check_shards.main([str(out)]) == 0) == finished
        assert build_shapes(out, *BUILD) == 0
        assert tree(out) == expected
        capsys.readouterr()
