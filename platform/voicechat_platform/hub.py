"""Fetch files of the Hugging Face hub, or of another hub that HF_ENDPOINT names.

huggingface_hub resolves names, sends the token (HF_TOKEN) and repeats what a bad connection interrupts. It does not
keep an interrupted download, compares no checksums, and only warns about a full disk; these are done here. Files lie in
.NAME.download, named by their checksums, until all are there. So the next attempt continues where the last one ended,
also if the repository has a new commit meanwhile.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from voicechat_platform.errors import InputError
from voicechat_platform.folders import appearing_whole, locked, sweep_partials

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

log = logging.getLogger(__name__)

DOWNLOAD = ".download"
ATTEMPTS = 3
PAUSE_S = 1.0
"""Before the second attempt; twice as long before the third."""
CHUNK_BYTES = 1 << 18
LARGEST_FILE_BYTES = 50 * 10**9
"""The hub gives larger files only to its own protocol (xet)."""
RANGE_NOT_SATISFIABLE = 416
Result = TypeVar("Result")

SHA256 = re.compile(r"[0-9a-f]{64}")
SHA1 = re.compile(r"[0-9a-f]{40}")


class HubError(InputError):
    """The hub cannot be reached, or does not give what was asked for."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository."""

    path: str
    size: int
    digest: str
    """SHA-256 of a large file (Git LFS), git's SHA-1 of a small one."""

    @property
    def name(self) -> str:
        """The last part of its path; the folders of a repository are not kept."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Listing:
    """The files of one commit of a repository."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids every request."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def list_files(repository: str, revision: str | None = None) -> Listing:
    """Return the files of a repository.

    Args:
        revision: a commit, a branch or a tag; by default the main branch.

    Raises:
        HubError: the hub is down or refuses, or has no such repository or revision.
    """
    from huggingface_hub import HfApi, constants

    if is_offline():
        raise HubError(f"{repository} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it")
    timeout = constants.HF_HUB_ETAG_TIMEOUT

    def ask() -> Listing:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=timeout)
        files = (
            HubFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else each.blob_id)  # type: ignore[arg-type]
            for each in info.siblings or ()
        )
        return checked(Listing(repository, str(info.sha), tuple(files)), revision)

    with hub_errors(repository, revision):
        return patiently(ask)


def checked(listing: Listing, revision: str | None) -> Listing:
    """Return the listing.

    Raises:
        HubError: it is not one of a hub. Its paths, checksums and sizes become names of files and promises.
    """
    for file in listing.files:
        parts = file.path.replace("\\", "/").split("/")
        if not isinstance(file.size, int) or file.size < 0 or not is_digest(file.digest) or {"", ".."} & set(parts):
            raise HubError(f"the hub {endpoint()} describes {file.path} of {listing.repository} as no hub does")
    if not SHA1.fullmatch(listing.commit):
        raise HubError(f"the hub {endpoint()} names no commit of {listing.repository}")
    if revision and SHA1.fullmatch(revision) and revision != listing.commit:
        raise HubError(f"the hub {endpoint()} gave the commit {listing.commit} of {listing.repository}, not {revision}")
    return listing


def is_digest(text: object) -> bool:
    return isinstance(text, str) and bool(SHA256.fullmatch(text) or SHA1.fullmatch(text))


def fetch(listing: Listing, files: Sequence[HubFile], folder: Path, finish: Callable[[Path], None]) -> Path:
    """Return the folder with the files; download them if there is no such folder yet.

    One process downloads, others wait for it. An interrupted download is continued by the next call.

    Args:
        files: some of the listing; no two have the same name.
        finish: called with the complete folder before it gets its name. If it raises, all is removed.

    Raises:
        HubError: the hub stopped answering, or gave other bytes than it lists.
        InputError: the disk has too little space.
        Exception: those of `finish`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_partials(folder.parent)
    with waiting_lock(folder):
        if folder.exists():
            return folder
        downloads = folder.with_name(f".{folder.name}{DOWNLOAD}")
        downloads.mkdir(exist_ok=True)
        keep_only(downloads, {file.digest for file in files})
        require_space(downloads, files)
        try:
            with progress_bar(listing.repository, files) as advance:
                for file in files:
                    fetch_file(listing, file, downloads / file.digest, advance)
        except BaseException:
            with contextlib.suppress(OSError):
                downloads.rmdir()  # if nothing came
            raise
        with appearing_whole(folder) as partial:
            for number, file in enumerate(files, 1):
                again = any(other.digest == file.digest for other in files[number:])  # two files of the same contents
                (shutil.copyfile if again else os.rename)(downloads / file.digest, partial / file.name)
            shutil.rmtree(downloads)
            finish(partial)
    return folder


@contextlib.contextmanager
def waiting_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; say so if another process has it."""
    from filelock import Timeout

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder, wait=False))
        except Timeout:
            log.info("another process downloads %s: waiting for it", folder.name)
            held.enter_context(locked(folder))
        yield


def keep_only(downloads: Path, digests: set[str]) -> None:
    """Remove what an earlier attempt began and this one does not need."""
    for path in downloads.iterdir():
        if path.name.removesuffix(".part") not in digests:
            path.unlink()


def require_space(downloads: Path, files: Sequence[HubFile]) -> None:
    """Raises: InputError: the disk has less space than the files still need, or a file is too large for the hub."""
    if large := next((file for file in files if file.size > LARGEST_FILE_BYTES), None):
        raise InputError(
            f"{large.path} has {readable(large.size)}, and files above {readable(LARGEST_FILE_BYTES)} cannot be "
            "fetched: choose a smaller quantisation, or one in parts"
        )
    there = sum(path.stat().st_size for path in downloads.iterdir())
    needed, free = sum({file.digest: file.size for file in files}.values()) - there, shutil.disk_usage(downloads).free
    if needed > free:
        raise InputError(
            f"the download needs {readable(needed)}, and the disk of {downloads.parent} has {readable(free)} left: "
            f"free some space, or set VOICECHAT_HOME to a folder on another disk"
        )


def readable(size: int) -> str:
    """Return a number of bytes as 1.2 GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


@contextlib.contextmanager
def progress_bar(repository: str, files: Sequence[HubFile]) -> Iterator[Callable[[int], None]]:
    """Show the progress on stderr. The function takes the number of new bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(repository, total=sum(file.size for file in files))
        yield lambda count: progress.advance(task, count)


def fetch_file(listing: Listing, file: HubFile, path: Path, advance: Callable[[int], None]) -> None:
    """Download one file, or the rest of it, and compare its checksum before it gets its name."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, silent_tqdm

    if path.exists():
        advance(file.size)
        return
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES  # of the library's 10 MiB, an interruption would lose all
    part = path.with_name(f"{path.name}.part")
    url = hf_hub_url(listing.repository, file.path, revision=listing.commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with Download(part, file, advance) as download, hub_errors(listing.repository, listing.commit):
        try:
            # It makes further attempts by itself if the connection breaks off.
            http_get(
                url,
                download,  # type: ignore[arg-type]
                resume_size=download.tell(),
                headers=headers,
                expected_size=file.size,
                tqdm_class=silent_tqdm,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != RANGE_NOT_SATISFIABLE:
                raise
        except OSError as error:  # the hub's file has another length
            log.debug("%s: %s", url, error)
    if not download.is_whole():
        part.unlink(missing_ok=True)
        raise HubError(
            f"the hub {endpoint()} gave other bytes for {file.path} of {listing.repository} than it lists (the "
            "checksum differs): they were deleted. Try again; if it happens again, do not use this hub"
        )
    part.rename(path)


class Download:
    """A file that knows its checksum at every length, and never becomes longer than it should be.

    It has the methods that `http_get` uses.
    """

    def __init__(self, path: Path, file: HubFile, advance: Callable[[int], None]) -> None:
        self.path = path
        self.file = file
        self.advance = advance

    def __enter__(self) -> "Download":
        self.out: BinaryIO = self.path.open("a+b")
        self.length = 0
        self.digest = self.new_digest()
        self.out.seek(0)
        while chunk := self.out.read(CHUNK_BYTES):  # what an earlier attempt left
            self.count(chunk)
        if self.length > self.file.size:
            self.restart()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk has been reported already
            self.out.close()
        if self.length == 0 < self.file.size:
            self.path.unlink()

    def new_digest(self) -> "hashlib._Hash":
        if SHA256.fullmatch(self.file.digest):
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)

    def count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.length += len(chunk)
        self.advance(len(chunk))

    def write(self, chunk: bytes) -> int:
        if self.length + len(chunk) > self.file.size:
            self.restart()
            raise HubError(f"the hub {endpoint()} gave more than the {self.file.size:,} bytes of {self.file.path}")
        try:
            self.out.write(chunk)
            self.out.flush()
        except OSError as error:
            raise InputError(
                f"{self.path.parent} cannot be written ({error.strerror}) after {readable(self.length)} of "
                f"{readable(self.file.size)}: make room, then give the same command again; it continues from there"
            ) from None
        self.count(chunk)
        return len(chunk)

    def tell(self) -> int:
        return self.length

    def seek(self, position: int) -> None:
        """`http_get` goes back to the start only, when the server does not know ranges."""
        assert position == 0

    def truncate(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.out.truncate(0)
        self.advance(-self.length)
        self.length, self.digest = 0, self.new_digest()

    def is_whole(self) -> bool:
        return self.length == self.file.size and self.digest.hexdigest() == self.file.digest


def patiently(call: Callable[[], Result]) -> Result:
    """Call up to ATTEMPTS times, if the hub does not answer or has an error of its own."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            log.info("the hub %s: %s; attempt %d of %d follows", endpoint(), cause(error), attempt + 1, ATTEMPTS)
            time.sleep(PAUSE_S * attempt)
    return call()


def cause(error: Exception) -> str:
    """Return the reason in a few words: neither a token nor a signed address, which exceptions may contain."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return f"it answers with the status {error.response.status_code}"
    if isinstance(error, httpx2.TimeoutException):
        return "it does not answer in time"
    if isinstance(error, httpx2.RemoteProtocolError):
        return "it breaks the connection off"
    if isinstance(error, httpx2.ConnectError):
        return f"it cannot be reached ({error})"
    return f"the request fails ({type(error).__name__})"


@contextlib.contextmanager
def hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Raises: HubError: instead of the errors of huggingface_hub and the network."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RevisionNotFoundError

    hub = f"the hub {endpoint()}"
    try:
        yield
    except RevisionNotFoundError:
        raise HubError(f"{hub} has no revision {revision!r} of {repository}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, GatedRepoError) or status == 403:
            raise HubError(
                f"{hub} refuses {repository}: accept its licence at {endpoint()}/{repository}, and set HF_TOKEN to a "
                "token of yours (Settings, Access Tokens) that may read it"
            ) from None
        if status == 401:
            raise HubError(
                f"{hub} has no {repository} that everybody may read: correct its name or, if it is private, set "
                "HF_TOKEN to a token that may read it"
            ) from None
        if status == 404:
            raise HubError(f"{hub} has no {repository}, or not the file: correct the name") from None
        raise HubError(f"{hub} does not give {repository}: {cause(error)}; try later") from None
    except httpx2.HTTPError as error:
        raise HubError(
            f"{hub} does not give {repository}: {cause(error)}. Try again later: what is there already stays"
        ) from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise HubError(f"{hub} does not answer about {repository} as a hub does ({type(error).__name__})") from None
