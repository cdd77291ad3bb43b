"""A sweep that has begun, without Ray and without a run."""

from pathlib import Path

from voicechat_platform.strict_yaml import read_yaml
from voicechat_tune.running import sweep_index
from voicechat_tune.running.run_files import sweep_folder
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile


def begun_sweep(text: str, folder: Path) -> Study:
    """Return the study of a sweep in the home, which the commands find.

    Args:
        text: the sweep's file.
        folder: where to write it.
    """
    (folder / "rates.yaml").write_text(text)
    sweep = read_yaml(folder / "rates.yaml", SweepFile)
    home = sweep_folder(sweep.name)
    home.mkdir(parents=True)
    sweep_index.update_index(sweep, home, force=False)
    return Study(home, sweep)
