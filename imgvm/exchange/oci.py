# SPDX-License-Identifier: MIT
"""An image as an artifact in an OCI registry: one layer, the qcow2 file; the labels become annotations.

    push("ci.img", "registry.example/team/ci:1")
    pull("registry.example/team/ci:1", "ci.img")
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from imgvm import launch
from imgvm.errors import ImageError, UsageError
from imgvm.machine import Machine
from imgvm.pack.output import Replacement, check_output, host_error
from imgvm.pack.progress import Progress, choose
from imgvm.registry import MANIFEST_TYPE, Registry, RegistryError, digest_of, is_digest, parse_ref

LAYER_TYPE = "application/vnd.kubevirt.disk.qcow2"
ARTIFACT_TYPE = "application/vnd.imgvm.image.v1"
EMPTY_TYPE, EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
TITLE, DESCRIPTION = "org.opencontainers.image.title", "org.opencontainers.image.description"
MAX_IMAGE_BYTES = 16 << 40


def push(
    path: str | Path,
    ref: str,
    *,
    plain_http: bool = False,
    allow: Collection[str] = (),
    progress: Progress | None = None,
) -> str:
    """Uploads an image; says its name with the digest of what is there now."""
    target = parse_ref(ref)
    if target.reference.startswith("sha256:"):
        raise UsageError(f"{ref}: what is pushed gets a tag", "write HOST/NAME:TAG")
    shown = progress or choose()
    opened = launch.open_image(path, writable=False, allow=allow)  # nobody writes it meanwhile
    try:
        with opened.image as image, Path(path).open("rb") as stream:
            if image.info.backing_file is not None:
                hint = "`imgvm export --to qemu` joins them into one: push its disk.qcow2"
                raise ImageError(f"{path} needs its backing file {image.info.backing_file}", hint)
            digest = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
            size = stream.tell()
            registry = Registry(target, plain_http=plain_http)
            if not registry.has_blob(digest):
                stream.seek(0)
                shown.step(f"pushing {Path(path).name}", size)
                registry.put_blob(digest, stream, size, shown.advance)
        if not registry.has_blob(digest_of(EMPTY)):
            registry.put_blob(digest_of(EMPTY), io.BytesIO(EMPTY), len(EMPTY), lambda _: None)
        manifest = json.dumps(_manifest(opened.machine, Path(path).name, digest, size), indent=1).encode()
        return f"{target.host}/{target.name}@{registry.put_manifest(manifest)}"
    finally:
        shown.finish()


def _manifest(machine: Machine, file: str, digest: str, size: int) -> dict[str, Any]:
    annotations = {TITLE: machine.name}
    if machine.description:
        annotations[DESCRIPTION] = machine.description
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [{"mediaType": LAYER_TYPE, "digest": digest, "size": size, "annotations": {TITLE: file}}],
        "annotations": annotations | dict(machine.labels),
    }


def pull(
    ref: str,
    output: str | Path | None = None,
    *,
    force: bool = False,
    plain_http: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetches an image. `output` None: NAME.img, as the last part of the reference's name."""
    source = parse_ref(ref)
    target = Path(output) if output is not None else Path(f"{source.name.rpartition('/')[2]}.img")
    check_output(target, force=force)
    registry = Registry(source, plain_http=plain_http)
    digest, size = _layer(registry)
    shown = progress or choose()
    try:
        with Replacement(target) as temporary:
            with temporary.open("xb") as stream:
                shown.step(f"pulling {target.name}", size)

                def keep(data: bytes) -> None:
                    stream.write(data)
                    shown.advance(stream.tell())

                registry.get_blob(digest, size, keep)
            launch.require_image(temporary)
    except OSError as error:
        raise host_error(error, target) from error
    finally:
        shown.finish()
    return target


def _layer(registry: Registry) -> tuple[str, int]:
    manifest, _ = registry.get_manifest()
    layers = manifest.get("layers")
    rows = [row for row in layers if isinstance(row, dict)] if isinstance(layers, list) else []
    found = [row for row in rows if row.get("mediaType") == LAYER_TYPE]
    if len(found) != 1:
        kinds = ", ".join(sorted({str(row.get("mediaType"))[:80] for row in rows})) or "nothing"
        raise RegistryError(f"{registry.ref} is no image of a machine: it holds {kinds}", "check the name")
    digest, size = found[0].get("digest"), found[0].get("size")
    if not isinstance(digest, str) or not is_digest(digest) or not isinstance(size, int):
        raise RegistryError(f"{registry.ref}: its manifest is damaged", "push it again")
    if not 0 <= size <= MAX_IMAGE_BYTES:
        raise RegistryError(f"{registry.ref}: its manifest speaks of {size} bytes", "push it again")
    return digest, size
