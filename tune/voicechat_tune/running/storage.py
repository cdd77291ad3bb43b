"""The storage of a sweep's results: a local or shared folder, or an object store such as S3, with one interface."""

import tempfile
import threading
import time
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from voicechat_platform.errors import InputError
from voicechat_platform.folders import appearing_whole
from voicechat_platform.paths import given_path

LOCAL = fs.LocalFileSystem()
COMPLETE = "run.json"  # written last and deleted first: a checkpoint with this file is complete
PARTIAL = ".partial"
BUCKET = "the bucket must exist, and the credentials must allow reading, writing and deleting in it: "
WHAT_TO_DO = {
    "s3": BUCKET + "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role",
    "gs": BUCKET + "`gcloud auth application-default login`, or the machine's service account",
}
OTHERWISE = "give a folder that can be written, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or another URI of pyarrow.fs"


class Storage:
    """A storage for checkpoints and files, with relative names such as "trials/3/last".

    Args:
        uri: a folder, or a URI of `pyarrow.fs`: `s3://bucket/folder`, `gs://bucket/folder`,
            `s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http`, `file:///folder`.
    """

    def __init__(self, uri: str):
        self.uri = uri if "://" in uri else str(given_path(uri))

    @cached_property
    def place(self) -> tuple[fs.FileSystem, str]:
        """The filesystem, and the path of our folder in it. To find a bucket's region, this may need the network."""
        if "://" not in self.uri:
            return LOCAL, self.uri
        filesystem, root = fs.FileSystem.from_uri(self.uri)
        return filesystem, root.rstrip("/")

    def check_writable(self, seconds: float = 20) -> None:
        """Write a small file, read it and delete it.

        Raises:
            InputError: this fails or takes longer. Object stores retry for minutes, and a lost NFS server blocks.
        """
        problems: list[Exception] = []

        def attempt() -> None:
            try:
                probe = f".writable-{time.time_ns()}"
                with tempfile.NamedTemporaryFile() as file:
                    self.put_file(Path(file.name), probe)
                    self.get_file(probe, Path(file.name))
                self.delete(probe)
            except Exception as error:  # each filesystem raises its own
                problems.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            problems.append(TimeoutError(f"no answer in {seconds:g} s"))
        if problems:
            what, advice = str(problems[0]).partition("\n")[0], WHAT_TO_DO.get(self.uri.partition("://")[0], OTHERWISE)
            raise InputError(f"{self.uri} cannot store results: {what}; {advice}") from problems[0]

    def put_folder(self, local: Path, name: str) -> None:
        """Upload a checkpoint's folder. `run.json` is the last file, so a reader can detect an incomplete upload.

        Each checkpoint needs a new name: during the upload over an existing one, there is no complete checkpoint.

        Raises:
            InputError: the folder has no `run.json`.
        """
        if not (local / COMPLETE).is_file():
            raise InputError(f"{local} is not a complete checkpoint: it has no {COMPLETE}")
        self.delete(name)
        files = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: (file == COMPLETE, file)):
            self.put_file(local / file, f"{name}/{file}")

    def get_folder(self, name: str, local: Path) -> bool:
        """Download a checkpoint as a new folder, atomically; return False if there is no complete checkpoint."""
        if not self.exists(f"{name}/{COMPLETE}"):
            return False
        filesystem, folder = self.place[0], self.path(name)
        infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
        with appearing_whole(local) as partial:
            for file in (info.path for info in infos if info.type == fs.FileType.File):
                copy(filesystem, file, LOCAL, str(partial) + file.removeprefix(folder))
        return True

    def put_file(self, local: Path, name: str) -> None:
        """Upload a file atomically; replace an existing one."""
        copy(LOCAL, str(local), self.place[0], self.path(name))

    def get_file(self, name: str, local: Path) -> bool:
        """Download a file atomically; return False if it does not exist."""
        if not self.exists(name):
            return False
        copy(self.place[0], self.path(name), LOCAL, str(local.absolute()))
        return True

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the files and folders directly in a folder, sorted; empty if there is none."""
        infos = self.place[0].get_file_info(fs.FileSelector(self.path(prefix), allow_not_found=True))
        return sorted(info.base_name for info in infos if not info.base_name.endswith(PARTIAL))

    def delete(self, name: str) -> None:
        """Delete a file or a folder if it exists; in a checkpoint `run.json` is deleted first."""
        filesystem, path = self.place[0], self.path(name)
        if self.exists(f"{name}/{COMPLETE}"):
            filesystem.delete_file(f"{path}/{COMPLETE}")
        if self.exists(name):
            filesystem.delete_file(path)
        elif filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)

    def size(self, name: str = "") -> int:
        """Return the bytes of all files below a folder; 0 if it does not exist."""
        below = fs.FileSelector(self.path(name), allow_not_found=True, recursive=True)
        return sum(info.size or 0 for info in self.place[0].get_file_info(below))

    def exists(self, name: str) -> bool:
        return self.place[0].get_file_info(self.path(name)).type == fs.FileType.File

    def path(self, name: str) -> str:
        """Return a name's path in the filesystem; the empty name is our folder.

        Raises:
            InputError: the name leads out of our folder, or does not have the form "folder/file".
        """
        if name and ("\\" in name or any(part in ("", ".", "..") for part in name.split("/"))):
            raise InputError(f"{name!r} is not a name below {self.uri}: write folder/file, without . and ..")
        return f"{self.place[1]}/{name}".removesuffix("/")


def copy(source: fs.FileSystem, path: str, destination: fs.FileSystem, target: str) -> None:
    """Copy one file atomically: on a disk by a rename; in an object store it appears at the end of the upload."""
    if destination.type_name != "local":
        fs.copy_files(path, target, source_filesystem=source, destination_filesystem=destination)
        return
    destination.create_dir(target.rpartition("/")[0], recursive=True)
    fs.copy_files(path, target + PARTIAL, source_filesystem=source, destination_filesystem=destination)
    destination.move(target + PARTIAL, target)
