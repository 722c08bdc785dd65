# SPDX-License-Identifier: MIT
"""Signatures of images, Ed25519 (RFC 8032). The only importer of cryptography.

    sign("ci.img", "key.pem")            # openssl genpkey -algorithm ed25519 -out key.pem
    faults("ci.img", "public.pem")       # openssl pkey -in key.pem -pubout -out public.pem

What is signed is a statement: name, size and SHA-256 of every other blob, and on request those of the disk.
It lies with its signature in the blob `signature.json`. The config can still be changed; that is found then.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgvm import launch, units
from imgvm.edit import config_date
from imgvm.errors import ImgvmError, UsageError
from imgvm.qcow2 import Image
from imgvm.record import NOTHING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "signature.json"
VERSION = 1
# Before the statement: nothing that was signed for another purpose passes for one.
_CONTEXT = b"imgvm image signature 1\n"
MAX_SIGNATURE_BYTES = 1 << 20
_MAX_KEY_BYTES = 1 << 16
_PIECE_BYTES = units.MIB


def sign(path: str | Path, key: str | Path, *, disk: bool = False, allow: Collection[str] = ()) -> None:
    """Signs an image with a private key (PEM). `disk`: what the disk holds now is signed, too."""
    private = _private_key(Path(key))
    with launch.open_image(path, writable=True, allow=allow).image as image:
        statement = json.dumps(_statement(image, disk=disk), indent=1)
        signature = base64.b64encode(private.sign(_CONTEXT + statement.encode())).decode()
        document = {"version": VERSION, "statement": statement, "signature": signature}
        blobs = {blob.name: image.read_config(blob.name) for blob in image.config_blobs()}
        blobs.pop(SIGNATURE, None)
        blobs[SIGNATURE] = (json.dumps(document, indent=1) + "\n").encode()
        image.set_config(blobs, date=config_date(image))


def faults(path: str | Path, key: str | Path, allow: Collection[str] = ()) -> Iterator[str]:
    """Why an image is not what the owner of a public key (PEM) has signed; nothing when it is."""
    public = _public_key(Path(key))
    from cryptography.exceptions import InvalidSignature

    with launch.open_disk(path, allow=allow) as image:
        if SIGNATURE not in {blob.name for blob in image.config_blobs()}:
            yield "it is not signed"
            return
        try:
            document = json.loads(image.read_config(SIGNATURE, MAX_SIGNATURE_BYTES))
            version, statement = document["version"], document["statement"]
            signature = base64.b64decode(document["signature"], validate=True)
            if version == VERSION:
                public.verify(signature, _CONTEXT + statement.encode())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            yield "its signature is damaged"
            return
        except InvalidSignature:
            yield f"it is not signed with the key of {key}"
            return
        if version != VERSION:
            yield f"its signature is of version {version}, which this imgvm does not know"
            return
        yield from _changes(image, json.loads(statement))


def _statement(image: Image, *, disk: bool, signed: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """`signed` is one to be compared with: a disk of another size than there is not read."""
    statement: dict[str, Any] = {
        "blobs": {
            blob.name: {"bytes": blob.bytes, "sha256": blob.sha256}
            for blob in image.config_blobs()
            if blob.name != SIGNATURE
        }
    }
    if disk:
        statement["disk"] = _disk(image, signed.get("disk"))
        for name in image.disk_names():
            further = image.open_disk(name)
            row = _disk(further, signed.get("further_disks", NOTHING).get(name))
            statement.setdefault("further_disks", {})[name] = row
            further.close()
    return statement


def _disk(image: Image, signed: Mapping[str, Any] | None) -> dict[str, Any]:
    digest, size = sha256(), image.info.disk_bytes
    if signed is not None and signed["bytes"] != size:
        return {"bytes": size}
    for offset in range(0, size, _PIECE_BYTES):
        digest.update(image.read(offset, min(_PIECE_BYTES, size - offset)))
    return {"bytes": size, "sha256": digest.hexdigest()}


def _changes(image: Image, signed: dict[str, Any]) -> Iterator[str]:
    """The statement is the signer's, and so believed; the image is not."""
    now = _statement(image, disk="disk" in signed, signed=signed)
    for name in sorted({*signed["blobs"], *now["blobs"]}):
        was, there = signed["blobs"].get(name), now["blobs"].get(name)
        if was is None:
            yield f"{name} was added after signing"
        elif there is None:
            yield f"{name} was there when it was signed, and is gone"
        elif was != there:
            yield f"{name} was changed after signing"
        else:
            try:
                image.read_config(name)  # what is there has the digest that is said
            except ImgvmError as error:
                yield error.message
    if "disk" in signed and signed["disk"] != now["disk"]:
        yield "the disk was changed after signing"
    was, there = signed.get("further_disks", {}), now.get("further_disks", {})
    if "disk" in signed and was != there:
        names = sorted(name for name in {*was, *there} if was.get(name) != there.get(name))
        yield f"the disk {', '.join(names)} was changed after signing"


def _private_key(path: Path) -> Ed25519PrivateKey:
    serialization, kinds = _library()
    hint = "openssl genpkey -algorithm ed25519 -out key.pem"

    def load(data: bytes) -> Any:
        return serialization.load_pem_private_key(data, password=None)

    found: Ed25519PrivateKey = _key(path, load, kinds.Ed25519PrivateKey, "private", hint)
    return found


def _public_key(path: Path) -> Ed25519PublicKey:
    serialization, kinds = _library()
    hint = "openssl pkey -in key.pem -pubout -out public.pem"
    load, kind = serialization.load_pem_public_key, kinds.Ed25519PublicKey
    found: Ed25519PublicKey = _key(path, load, kind, "public", hint)
    return found


def _key(path: Path, load: Callable[[bytes], Any], kind: type, word: str, hint: str) -> Any:
    with path.open("rb") as stream:
        data = stream.read(_MAX_KEY_BYTES)
    try:
        key = load(data)
    except TypeError:
        raise UsageError(f"{path} is locked with a password", "openssl pkey -in it -out another") from None
    except ValueError:
        raise UsageError(f"{path} is no {word} key in PEM form", hint) from None
    if not isinstance(key, kind):
        raise UsageError(f"{path} is no Ed25519 key", hint)
    return key


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        hint = "pip install 'imgvm[sign]', or Debian's python3-cryptography"
        raise ImgvmError("signatures need the Python package cryptography", hint) from None
    return serialization, ed25519
