"""Folders that appear whole and once, also when several processes want them and some are killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicechat_platform.checkpoint_files import recover
from voicechat_platform.folders import appearing_whole, folder_name, made_once, scratch_folder, sweep_partials

MAKER = """
import sys
from pathlib import Path
from voicechat_platform.folders import made_once, scratch_folder

def make(folder):
    (folder / "half").touch()
    print("making", flush=True)
    if sys.stdin.readline():
        (folder / "whole").touch()

target = Path(sys.argv[1])
if sys.argv[2:]:
    with scratch_folder(target, "scratch-") as folder:
        make(folder)
else:
    print("asks", flush=True)
    made_once(target, make)
    print("has", sorted(path.name for path in target.iterdir()), flush=True)
"""


def maker(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def killed(process: subprocess.Popen) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()


def test_one_process_makes_it_and_the_others_wait(tmp_path):
    target = tmp_path / "deep" / "thing"
    first = maker(target)
    assert [first.stdout.readline(), first.stdout.readline()] == ["asks\n", "making\n"]
    others = [maker(target) for _ in range(3)]
    assert {other.stdout.readline() for other in others} == {"asks\n"}
    assert not target.exists()
    first.stdin.write("go on\n")
    first.stdin.flush()
    outputs = [process.communicate()[0] for process in (first, *others)]
    assert outputs == ["has ['half', 'whole']\n"] * 4  # none of the others made anything
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


def test_what_a_killed_process_was_making_is_swept_away_and_made_anew(tmp_path):
    process = maker(tmp_path / "thing")
    process.stdout.readline(), process.stdout.readline()
    killed(process)
    assert not (tmp_path / "thing").exists()
    made_once(tmp_path / "another", lambda folder: None)  # whoever writes there next
    assert list(tmp_path.glob(".*.partial")) == []
    made_once(tmp_path / "thing", lambda folder: (folder / "new").touch())
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["new"]


def test_what_a_living_process_is_making_is_left_alone(tmp_path):
    process = maker(tmp_path / "thing")
    process.stdout.readline(), process.stdout.readline()
    sweep_partials(tmp_path)
    made_once(tmp_path / "another", lambda folder: None)
    assert process.communicate("go on\n")[0] == "has ['half', 'whole']\n"


def test_threads_share_one_making(tmp_path):
    made = []
    threads = [threading.Thread(target=made_once, args=(tmp_path / "thing", made.append)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_failure_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(tmp_path / "thing", fail)
    assert list(tmp_path.iterdir()) == []


def test_scratch_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead, living = maker(tmp_path, "scratch"), maker(tmp_path, "scratch")
    dead.stdout.readline(), living.stdout.readline()
    killed(dead)
    assert len(list(tmp_path.glob("scratch-*"))) == 2
    with scratch_folder(tmp_path, "scratch-") as own:
        assert len(list(tmp_path.glob("scratch-*"))) == 2  # our own, and that of the living
    assert not own.exists()
    (kept,) = tmp_path.glob("scratch-*")
    assert (kept / "half").exists()
    living.communicate("go on\n")
    assert list(tmp_path.glob("scratch-*")) == []


@pytest.mark.parametrize("rest", ["..last.replacing-7xq_k2ab", "..last.replacing.partial", ".last.replaced"])
def test_what_a_killed_saving_left_is_swept_away_before_the_next(tmp_path, rest):
    """The first is how the partial folder was called once."""
    for name in (rest, "last", "..last2.replacing-7xq_k2ab"):
        (tmp_path / name).mkdir()
    recover(tmp_path / "last")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["..last2.replacing-7xq_k2ab", "last"]


def test_a_half_made_folder_of_the_same_name_is_no_hindrance(tmp_path):
    (tmp_path / ".thing.partial" / "old").mkdir(parents=True)
    with appearing_whole(tmp_path / "thing") as folder:
        assert list(folder.iterdir()) == []
    assert (tmp_path / "thing").is_dir()


@given(st.text(), st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_a_name_is_one_short_part_of_a_path_and_the_identity_s_own(label, identity, other):
    name = folder_name(label, identity)
    assert Path(name).name == name
    assert not name.startswith(".")
    assert len(name) < 64
    assert name.isascii()
    assert (folder_name(label, other) == name) == (other == identity)
