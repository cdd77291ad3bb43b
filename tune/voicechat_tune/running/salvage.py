"""Repair a sweep with a damaged journal or index: the sound lines stay, and the damaged file is renamed."""

import contextlib
import logging
from pathlib import Path
from typing import Any

from voicechat_platform.errors import InputError
from voicechat_platform.json_file import read_object
from voicechat_platform.registry import Registry
from voicechat_tune.running.run import locked
from voicechat_tune.running.run_files import object_store, sweep_folder
from voicechat_tune.running.sweep_index import INDEX, group_of, read_index, write_index
from voicechat_tune.search import journal
from voicechat_tune.search.samplers import trials_of
from voicechat_tune.search.study import header_of
from voicechat_tune.search.sweep_file import SweepFile

log = logging.getLogger(__name__)


def salvage(sweep: SweepFile) -> None:
    """Replace a damaged journal and a damaged index by sound ones. The damaged files are renamed.

    Lost evaluations come back from the runs' checkpoints, if they still exist: a run that continues sends its history
    again.

    Raises:
        InputError: the journal belongs to another sweep, or a process runs the sweep now.
        RegistryError: the index is damaged, and the registry cannot find the sweep's versions.
    """
    folder = sweep_folder(sweep.name, sweep.storage)
    if not any((folder / name).exists() for name in (journal.JOURNAL, INDEX, "runs")):
        return
    store = object_store(sweep)
    with locked(folder):
        if store is not None:
            for name in (INDEX, journal.JOURNAL):
                if not (folder / name).exists():
                    store.get_file(f"{sweep.name}/{name}", folder / name)
        left = journal.salvage(folder / journal.JOURNAL, header_of(sweep))
        if left is not None:
            log.info("the journal is sound again, with %s", left)
            # The next backup overwrites the store's journal. A new trial may get the number of a lost one, so the runs'
            # folders are renamed.
            if store is not None:
                store.get_file(f"{sweep.name}/{journal.JOURNAL}", folder / f"{journal.JOURNAL}.from-storage")
                journal.set_aside(folder / "runs")
        try:
            read_index(folder)
        except InputError as error:
            index = restored_index(sweep, folder)
            journal.set_aside(folder / INDEX)
            write_index(folder, index)
            log.info("%s; it is now replaced, and the group of its versions is %s", error, index["group"])


def restored_index(sweep: SweepFile, folder: Path) -> dict[str, Any]:
    """Restore the index of `sweep_index.update_index` as far as possible, with the given sweep file."""
    known: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        known = read_object(folder / INDEX)
    group, extended = known.get("group"), known.get("extended")
    if not isinstance(group, str) or not group:
        group = Registry().newest_group(sweep.name) or group_of(sweep)
    if type(extended) is not int or extended < 0:
        held = journal.sound_lines(journal.read_lines(folder / journal.JOURNAL), header_of(sweep)).contents.numbered
        extended = max(0, held - trials_of(sweep))
    return {"extended": extended, "group": group, "file": sweep.model_dump(mode="json", by_alias=True)}
