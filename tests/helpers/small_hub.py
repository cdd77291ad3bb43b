"""A hub on loopback with the requests that huggingface_hub makes, and with the faults that a hub can have."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

LARGE = (".gguf", ".safetensors", ".bin")
"""Files that a hub keeps in Git LFS, by their SHA-256."""


@dataclass
class SmallHub:
    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """OWNER/REPO -> path -> contents."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path, headers."""
    served: dict[str, bytes] = field(default_factory=dict)
    """Path -> contents that it gives instead of those that it lists."""
    status: int = 200
    """Any other: the answer to everything."""
    error_code: str = ""
    """Header X-Error-Code."""
    failures: int = 0
    """So many answers have the status 500."""
    break_off_after: int | None = None
    """Bytes of a file's contents, once; the connection then ends."""
    knows_ranges: bool = True
    silent: threading.Event = field(default_factory=threading.Event)
    """While it is set, no answer comes."""
    waiting: threading.Event = field(default_factory=threading.Event)
    """Set when a request arrives."""
    silent_after: int | None = None
    """Bytes of a file's contents; then nothing more comes."""

    def commit(self, repository: str) -> str:
        """Changes with each change of a file, as git's does."""
        names = "".join(f"{path} {sha256(data)}" for path, data in sorted(self.repositories[repository].items()))
        return hashlib.sha1(names.encode()).hexdigest()

    def listing(self, repository: str) -> dict[str, Any]:
        files = []
        for path, data in self.repositories[repository].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            file: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
            if path.endswith(LARGE):
                file["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            files.append(file)
        return {"id": repository, "sha": self.commit(repository), "siblings": files, "private": False, "tags": []}

    def downloads(self) -> list[str]:
        """Return the Range header, or "", of each request for a file's contents."""
        return [headers.get("range", "") for path, headers in self.requests if "/resolve/" in path]


@contextmanager
def asked_in_this_process(hub: SmallHub) -> Iterator[pytest.MonkeyPatch]:
    """As HF_ENDPOINT in the environment of a new process; this one has read it already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield patch
    close_session()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running_hub() -> Iterator[SmallHub]:
    hub = SmallHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            if hub.error_code:
                self.send_header("X-Error-Code", hub.error_code)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
            hub.waiting.set()
            while hub.silent.is_set():
                threading.Event().wait(0.02)
            if hub.failures:
                hub.failures -= 1
                return self.answer(500)
            if hub.status != 200:
                return self.answer(hub.status)
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repositories:
                return self.describe("/".join(parts[2:4]), "/".join(parts[5:]))
            repository, name = "/".join(parts[:2]), "/".join(parts[4:])
            if parts[2:3] == ["resolve"] and name in hub.repositories.get(repository, {}):
                return self.give(repository, name)
            return self.answer(404, X_Error_Code="RepoNotFound")

        def describe(self, repository: str, revision: str) -> None:
            if revision not in ("", "main", hub.commit(repository)):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            return self.answer(200, json.dumps(hub.listing(repository)).encode())

        def give(self, repository: str, name: str) -> None:
            data = hub.served.get(name, hub.repositories[repository][name])
            first = int(self.headers.get("Range", "bytes=0-")[6:-1]) if hub.knows_ranges else 0
            facts = {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": hub.commit(repository)}
            if first >= len(data) > 0:
                return self.answer(416, Content_Range=f"bytes */{len(data)}")
            if first:
                facts["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            stop = hub.break_off_after if hub.silent_after is None else hub.silent_after
            if stop is None or stop >= len(data) - first:
                return self.answer(206 if first else 200, data[first:], **facts)
            self.send_response(206 if first else 200)
            for header, value in {**facts, "Content-Length": str(len(data) - first)}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(data[first : first + stop])
            hub.break_off_after = None
            while hub.silent_after is not None:
                threading.Event().wait(0.02)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.silent.clear()
        hub.silent_after = None
        server.shutdown()
        server.server_close()
