# SPDX-License-Identifier: MIT
"""A client of OCI registries (the OCI Distribution Specification): manifests, blobs, token and basic auth.

    manifest, digest = Registry(parse_ref("registry.example/team/ci:1")).get_manifest()

What a registry answers is not trusted: sizes are bounded, and content counts only when its digest is right.
Credentials are those of `docker login` or `podman login`; they go to the registry and its token service only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, BinaryIO

from imgvm.errors import STATUS_NOT_FOUND, ImgvmError, UsageError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_ANSWER_BYTES = 1 << 20
CHUNK_BYTES = 16 << 20
TIMEOUT_SEC = 60
_API_HOSTS = {"docker.io": "registry-1.docker.io"}  # where a name leads that is not that of the server
_LOCAL = ("localhost", "127.0.0.1", "[::1]")

_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(ImgvmError):
    """A registry refuses, or does not keep to the specification."""


@dataclass(frozen=True)
class Ref:
    """`host/name:tag` or `host/name@digest`."""

    host: str
    name: str
    reference: str  # a tag or a digest

    def __str__(self) -> str:
        return f"{self.host}/{self.name}{'@' if ':' in self.reference else ':'}{self.reference}"


def parse_ref(text: str) -> Ref:
    hint = "write HOST/NAME:TAG, such as registry.example/team/ci:1"
    host, slash, rest = text.partition("/")
    if not slash or not _HOST.fullmatch(host) or not ("." in host or ":" in host or host == "localhost"):
        raise UsageError(f"{text} names no registry", hint)
    name, at, reference = rest.partition("@")
    if not at:
        name, colon, reference = rest.partition(":")
        reference = reference if colon else "latest"
    pattern = _DIGEST if at else _TAG
    if not _NAME.fullmatch(name) or len(name) > 255 or not pattern.fullmatch(reference):
        raise UsageError(f"{text} is no reference to an image", hint)
    return Ref(host, name, reference)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Blobs often lie elsewhere: we follow without our credentials, and never down to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https://"):
            raise RegistryError(f"{req.host} sends us on without encryption", "ask who runs the registry")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and following.host != req.host:
            following.remove_header("Authorization")
        return following


class Registry:
    """One repository of a registry."""

    def __init__(self, ref: Ref, *, plain_http: bool = False) -> None:
        self.ref = ref
        self._local = ref.host.rpartition(":")[0] in _LOCAL or ref.host in _LOCAL
        self._scheme = "http" if plain_http or self._local else "https"
        self._host = _API_HOSTS.get(ref.host, ref.host)
        self._base = f"{self._scheme}://{self._host}/v2/{ref.name}"
        self._authorization: str | None = None
        proxies = [urllib.request.ProxyHandler({})] if self._local else []
        self._opener = urllib.request.build_opener(_Redirects, *proxies)

    def get_manifest(self) -> tuple[dict[str, Any], str]:
        """The manifest that the reference names, and its digest."""
        data, digest = self.get_manifest_bytes(self.ref.reference, (MANIFEST_TYPE,))
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError):
            raise self._strange("its manifest is not JSON") from None
        if not isinstance(manifest, dict):
            raise self._strange("its manifest is not a map")
        return manifest, digest

    def get_manifest_bytes(self, reference: str, types: Sequence[str]) -> tuple[bytes, str]:
        """A manifest or an index, and its digest, which is right when it was asked for by it."""
        url = f"{self._base}/manifests/{reference}"
        with self._open("GET", url, {"Accept": ", ".join(types)}) as answer:
            data = answer.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise self._strange("its manifest is too large")
        digest = digest_of(data)
        if ":" in reference and digest != reference:
            raise self._strange(f"it sent a manifest of the digest {digest}")
        return data, digest

    def put_manifest(self, data: bytes) -> str:
        url = f"{self._base}/manifests/{self.ref.reference}"
        with self._open("PUT", url, {"Content-Type": MANIFEST_TYPE}, data, write=True):
            return digest_of(data)

    def has_blob(self, digest: str) -> bool:
        try:
            with self._open("HEAD", f"{self._base}/blobs/{digest}", write=True):
                return True
        except RegistryError as error:
            if error.status != STATUS_NOT_FOUND:
                raise
            return False

    def get_blob(self, digest: str, size: int, write: Callable[[bytes], object]) -> None:
        """Hands a blob over in pieces. Its digest is known only at the end: an error takes all of it back."""
        found, done = hashlib.sha256(), 0
        with self._open("GET", f"{self._base}/blobs/{digest}") as answer:
            while data := answer.read(1 << 20):
                done += len(data)
                if done > size:
                    break
                found.update(data)
                write(data)
        if done != size or f"sha256:{found.hexdigest()}" != digest:
            raise self._strange(f"the blob {digest} came with another size or content")

    def put_blob(self, digest: str, stream: BinaryIO, size: int, advance: Callable[[int], object]) -> None:
        """Uploads a blob in chunks."""
        with self._open("POST", f"{self._base}/blobs/uploads/", {}, b"", write=True) as answer:
            location = self._location(answer.headers)
        done = 0
        while done < size:
            chunk = stream.read(min(CHUNK_BYTES, size - done))
            if not chunk:
                raise RegistryError("the image became shorter meanwhile", "push it when nothing writes it")
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{done}-{done + len(chunk) - 1}",
            }
            with self._open("PATCH", location, headers, chunk, write=True) as answer:
                location = self._location(answer.headers)
            done += len(chunk)
            advance(done)
        join = "&" if "?" in location else "?"
        url = f"{location}{join}digest={urllib.parse.quote(digest, safe='')}"
        with self._open("PUT", url, {"Content-Type": "application/octet-stream"}, b"", write=True):
            pass

    def _location(self, headers: Message) -> str:
        location = urllib.parse.urljoin(self._base, headers.get("Location", ""))
        # The upload goes on with our credentials: to nobody else.
        if urllib.parse.urlsplit(location).netloc != self._host:
            raise self._strange("it wants the upload to go to another host")
        return urllib.parse.urlunsplit(urllib.parse.urlsplit(location)._replace(scheme=self._scheme))

    def _strange(self, what: str) -> RegistryError:
        return RegistryError(f"{self.ref}: the registry is strange: {what}", "ask who runs it")

    def _open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        *,
        write: bool = False,
    ) -> Any:
        for attempt in range(2):
            request = urllib.request.Request(url, data, dict(headers or {}), method=method)
            if self._authorization:
                request.add_header("Authorization", self._authorization)
            try:
                return self._opener.open(request, timeout=TIMEOUT_SEC)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 401 and not attempt:
                        self._authorization = self._authorize(error.headers, write=write)
                        continue
                    raise self._refused(error) from None
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", error)
                hint = "check its name and the network"
                if "WRONG_VERSION_NUMBER" in str(reason):
                    hint = "--plain-http talks to a registry that has no encryption"
                raise RegistryError(f"{self.ref.host}: {reason}", hint) from None
        raise AssertionError("the second attempt returns or raises")

    def _refused(self, error: urllib.error.HTTPError) -> RegistryError:
        said = ", ".join(_messages(error.read(MAX_ANSWER_BYTES))) or error.reason
        if error.code in (401, 403):
            hint = f"log in: podman login {self.ref.host}"
            return RegistryError(f"{self.ref}: the registry refuses: {said}", hint)
        if error.code == 404:
            return RegistryError(f"{self.ref}: there is no such image", "check the name", STATUS_NOT_FOUND)
        return RegistryError(f"{self.ref}: the registry answers {error.code}: {said}", "try again later")

    def _authorize(self, headers: Message, *, write: bool) -> str:
        challenge = headers.get("WWW-Authenticate", "")
        login = _login(self.ref.host)
        if challenge.lower().startswith("basic"):
            if login is None:
                raise RegistryError(f"{self.ref.host} wants a login", f"podman login {self.ref.host}")
            return f"Basic {login}"
        fields = dict(_CHALLENGE.findall(challenge))
        realm = fields.get("realm", "")
        if not challenge.lower().startswith("bearer") or not realm.startswith(("https://", f"{self._scheme}://")):
            raise self._strange(f"it asks for {challenge[:80] or 'nothing'} to log in")
        query = {"scope": f"repository:{self.ref.name}:pull{',push' if write else ''}"}
        if "service" in fields:
            query["service"] = fields["service"]
        request = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(query)}")
        if login is not None:
            request.add_header("Authorization", f"Basic {login}")
        try:
            with self._opener.open(request, timeout=TIMEOUT_SEC) as answer:
                token = json.loads(answer.read(MAX_ANSWER_BYTES))
            return f"Bearer {token.get('token') or token['access_token']}"
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise RegistryError(f"{realm} gives no token: {error}", "try again later") from None


def _messages(answer: bytes) -> Iterator[str]:
    """The words of an error in the specification's form."""
    try:
        for error in json.loads(answer)["errors"]:
            yield str(error.get("message") or error["code"])[:200]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _login(host: str) -> str | None:
    """The base64 of user:password that a login has left for a host."""
    home = Path.home()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")
    named = os.environ.get("REGISTRY_AUTH_FILE")
    docker = Path(os.environ.get("DOCKER_CONFIG", home / ".docker")) / "config.json"
    files = [Path(named)] if named else [
        Path(runtime) / "containers/auth.json", home / ".config/containers/auth.json", docker,
    ]  # fmt: skip
    for file in files:
        try:
            entry = json.loads(file.read_bytes())["auths"][host]["auth"]
            base64.b64decode(entry, validate=True)
            return str(entry)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None
