# SPDX-License-Identifier: MIT
"""Container images as file trees: an OCI image layout, as a folder or an archive, what `docker save` writes,
or an image of a registry.

Layers are laid over each other in the image's order with their whiteouts (OCI image specification, layer.md).
Every blob must have the digest that it is called by.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from imgvm.errors import PackError
from imgvm.pack import from_tar
from imgvm.pack.deb import OFFLINE_HINT
from imgvm.pack.progress import Progress
from imgvm.pack.sources import Source
from imgvm.pack.tree import FileTree
from imgvm.registry import MANIFEST_TYPE, Registry, digest_of, is_digest, parse_ref

PART = "rootfs.oci"
MAX_JSON_BYTES = 4 << 20
MAX_LAYERS = 512
MAX_BLOB_BYTES = 1 << 40
_MAX_INDEXES = 4
_PLATFORM = ("linux", "amd64")
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    MANIFEST_TYPE,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class _Store(Protocol):
    """The files of an image."""

    part: str

    def find(self, path: str, size_bytes: int | None = None) -> BinaryIO | None:
        """A file, if it is there. A blob's size is known from what names it."""


def read(path: Path, name: str, stack: ExitStack, latest_sec: int | None) -> tuple[FileTree, Source]:
    """The tree of the image at `path`, and the lock's row: the digest is that of its manifest."""
    part = f"{PART}: {name}"
    try:
        store: _Store = _Folder(path, part, stack) if path.is_dir() else _Archive(path, part, stack)
    except OSError as error:
        hint = "an image of a registry is named so: oci: {registry: HOST/NAME:TAG}"
        raise PackError(f"{part}: {error.strerror}", hint=hint, errno=error.errno or 0) from error
    if store.find("index.json") is not None:
        digest, layers = _layers(store, *_json(store, "index.json"))
    elif store.find("manifest.json") is not None:
        digest, layers = _docker_layers(store)
    else:
        hint = "an OCI image layout, or an archive of `docker save` or `skopeo copy ... oci-archive:`"
        raise PackError(f"{part} is not a container image", hint=hint)
    tree, total = _tree(store, layers, stack, latest_sec)
    return tree, Source(PART, name, digest, total)


def fetch(
    name: str,
    cache: Path,
    progress: Progress,
    stack: ExitStack,
    latest_sec: int | None,
    *,
    pin: Source | None = None,
    offline: bool = False,
) -> tuple[FileTree, Source]:
    """The tree of an image of a registry, whose blobs stay in the cache, and the lock's row. `pin` is such a
    row; `offline`: the cache must have all of it."""
    ref = parse_ref(name)
    store = _Remote(Registry(ref), cache / "oci", progress, stack, offline=offline)
    found = f"sha256:{pin.sha256}" if pin is not None else ref.reference
    found = (found if is_digest(found) else store.newest(found)).removeprefix("sha256:")
    digest, layers = _layers(store, *_json(store, f"blobs/sha256/{found}", found))
    tree, total = _tree(store, layers, stack, latest_sec)
    return tree, Source(PART, f"{ref.host}/{ref.name}", digest, total, asked=name)


class _Folder:
    """An image layout as a folder."""

    def __init__(self, path: Path, part: str, stack: ExitStack) -> None:
        self.part = part
        self._path = path
        self._stack = stack

    def find(self, path: str, size_bytes: int | None = None) -> BinaryIO | None:
        file = self._path / path
        if not file.is_file() or not file.resolve().is_relative_to(self._path.resolve()):
            return None
        return self._stack.enter_context(file.open("rb"))


class _Archive:
    """An image as a tar archive."""

    def __init__(self, path: Path, part: str, stack: ExitStack) -> None:
        self.part = part
        self._stack = stack
        self._tree = FileTree()
        file = stack.enter_context(path.open("rb"))
        from_tar.add(self._tree, from_tar.unpacked(file, part, stack), part, latest_sec=None)

    def find(self, path: str, size_bytes: int | None = None) -> BinaryIO | None:
        node = self._tree.find(path.encode())
        if node is None or not node.is_file:
            return None
        out = from_tar.temporary(self._stack)
        for piece in node.content.pieces():
            from_tar.keep(out, piece)
        from_tar.flush(out)
        return out


class _Remote:
    """An image in a registry. Blobs are fetched once."""

    def __init__(
        self, registry: Registry, cache: Path, progress: Progress, stack: ExitStack, *, offline: bool
    ) -> None:
        self.part = f"{PART}: {registry.ref}"
        self._registry = registry
        self._cache = cache
        self._progress = progress
        self._stack = stack
        self._offline = offline

    def newest(self, tag: str) -> str:
        """The digest that a tag stands for now."""
        if self._offline:
            hint = "pack with --frozen, which takes the one of the lock; or name it by its digest"
            raise PackError(f"--offline: {self.part}: nobody is there to say what {tag} is", hint)
        data, digest = self._registry.get_manifest_bytes(tag, _MANIFEST_TYPES)
        self._keep(digest.removeprefix("sha256:"), lambda out: out.write(data))
        return digest

    def find(self, path: str, size_bytes: int | None = None) -> BinaryIO | None:
        digest = path.rpartition("/")[2]
        kept = self._cache / digest
        if kept.is_file():
            stream = self._stack.enter_context(kept.open("rb"))
            if hashlib.file_digest(stream, "sha256").hexdigest() == digest:
                return stream
        if self._offline:
            raise PackError(f"--offline: {self.part}: {digest[:12]} is not in the cache", OFFLINE_HINT)
        return self._keep(digest, lambda out: self._get(digest, size_bytes, out))

    def _keep(self, digest: str, write: Callable[[Any], object]) -> BinaryIO:
        kept = self._cache / digest
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._cache, prefix=".new-", delete=False) as out:
                try:
                    write(out)
                    out.flush()
                    Path(out.name).replace(kept)
                except BaseException:
                    Path(out.name).unlink(missing_ok=True)
                    raise
            return self._stack.enter_context(kept.open("rb"))
        except OSError as error:
            hint = "free some space, or set XDG_CACHE_HOME to another folder"
            raise PackError(f"the cache {self._cache} cannot be used: {error.strerror}", hint=hint) from error

    def _get(self, digest: str, size_bytes: int | None, out: Any) -> None:
        if size_bytes is None:  # a manifest
            data, _ = self._registry.get_manifest_bytes(f"sha256:{digest}", _MANIFEST_TYPES)
            out.write(data)
            return
        self._progress.step(f"fetching {digest[:12]} of {self._registry.ref}", size_bytes)

        def keep(data: bytes) -> None:
            out.write(data)
            self._progress.advance(out.tell())

        self._registry.get_blob(f"sha256:{digest}", size_bytes, keep)


def _parse(data: bytes, name: str) -> tuple[Any, str]:
    try:
        return json.loads(data), digest_of(data).removeprefix("sha256:")
    except (ValueError, RecursionError):
        raise PackError(f"{name} is not JSON") from None


def _json(store: _Store, path: str, digest: str | None = None) -> tuple[Any, str]:
    """A file of JSON, and its digest, which must be `digest` when that is known."""
    file = store.find(path)
    if file is None:
        raise PackError(f"{store.part}: it lacks {path}")
    file.seek(0)
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise PackError(f"{store.part}: {path} is too large")
    found, own = _parse(data, f"{store.part}: {path}")
    if digest not in (None, own):
        raise PackError(f"{store.part}: {path} has another digest, {own}", hint="fetch the image again")
    return found, own


def _tree(
    store: _Store, layers: list[tuple[str, int | None]], stack: ExitStack, latest_sec: int | None
) -> tuple[FileTree, int]:
    """The layers over each other, and their size as they came."""
    if len(layers) > MAX_LAYERS:
        raise PackError(f"{store.part}: more than {MAX_LAYERS} layers")
    tree, total, unpacked_bytes = FileTree(), 0, 0
    laid: dict[str, BinaryIO] = {}  # one that is named again is not read again
    for path, size_bytes in layers:
        label = f"{store.part}: layer {path.rpartition('/')[2][:12]}"
        if path not in laid:
            file = store.find(path, size_bytes)
            if file is None:
                raise PackError(f"{store.part}: it lacks {path}")
            wanted = re.search(r"sha256/([0-9a-f]{64})$", path)
            if wanted and wanted[1] != from_tar.digest(file):
                raise PackError(f"{store.part}: {path} has another digest", hint="fetch the image again")
            total += file.seek(0, os.SEEK_END)
            # All layers together: hundreds of bombs are one.
            layer = from_tar.unpacked(file, label, stack, from_tar.limit(total) - unpacked_bytes)
            unpacked_bytes += layer.seek(0, os.SEEK_END) if layer is not file else 0
            laid[path] = layer
        from_tar.add(tree, laid[path], label, latest_sec=latest_sec, whiteouts=True)
    return tree, total


def _layers(store: _Store, rows: Any, found: str) -> tuple[str, list[tuple[str, int | None]]]:
    """The manifest's digest and the paths and sizes of the layers, from the top of an image."""
    for _ in range(_MAX_INDEXES):
        if not isinstance(rows, dict) or not isinstance(rows.get("manifests"), list):
            break
        digest = _digest(_choose(rows["manifests"], store), store)
        rows, found = _json(store, f"blobs/sha256/{digest}", digest)
    layers = rows.get("layers") if isinstance(rows, dict) else None
    if not isinstance(layers, list):
        raise PackError(f"{store.part}: its manifest has no layers")
    return found, [(f"blobs/sha256/{_digest(row, store)}", _size(row, store)) for row in layers]


def _choose(manifests: list[Any], store: _Store) -> Any:
    """The one for this platform. A row that names none is taken when there is no other."""
    rows = [row for row in manifests if isinstance(row, dict)]

    def platform(row: dict[str, Any]) -> tuple[Any, Any]:
        words = row.get("platform")
        return (words.get("os"), words.get("architecture")) if isinstance(words, dict) else (None, None)

    fitting = [row for row in rows if platform(row) == _PLATFORM] or [
        row for row in rows if platform(row) == (None, None)
    ]
    if len(fitting) != 1:
        what = "no image" if not fitting else f"{len(fitting)} images"
        raise PackError(f"{store.part}: it holds {what} for linux/amd64", hint="give a layout with one")
    return fitting[0]


def _digest(row: Any, store: _Store) -> str:
    text = row.get("digest") if isinstance(row, dict) else None
    match = re.fullmatch(r"sha256:([0-9a-f]{64})", text) if isinstance(text, str) else None
    if match is None:
        raise PackError(f"{store.part}: a descriptor has no SHA-256 digest")
    return match[1]


def _size(row: Any, store: _Store) -> int:
    size = row.get("size")
    if not isinstance(size, int) or not 0 <= size <= MAX_BLOB_BYTES:
        raise PackError(f"{store.part}: a descriptor has no size, or one beyond reason")
    return size


def _docker_layers(store: _Store) -> tuple[str, list[tuple[str, int | None]]]:
    rows, found = _json(store, "manifest.json")
    if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
        raise PackError(f"{store.part}: it holds not one image", hint="save one image")
    layers = rows[0].get("Layers")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise PackError(f"{store.part}: its manifest has no layers")
    return found, [(layer, None) for layer in layers]
