# SPDX-License-Identifier: MIT
"""`imgvm push` and `pull`: end to end with a real registry, and with one that asks for tokens and lies."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from multiboot_guest import leave, say

from imgvm import registry
from imgvm.cli import main
from imgvm.errors import ImgvmError, UsageError
from imgvm.exchange import oci
from imgvm.pack import from_oci
from imgvm.pack.progress import Progress
from imgvm.pack.sources import Source
from imgvm.registry import Ref, parse_ref

Images = Callable[..., Path]
DISK = "disks: [{name: data, source: source.raw}]\nlabels: {team: ci}\ndescription: For tests\nimage: {license: MIT OR Apache-2.0}"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("localhost:5000/a", Ref("localhost:5000", "a", "latest")),
        ("registry.example/team/ci:1.2", Ref("registry.example", "team/ci", "1.2")),
        ("[::1]:5000/a:b", Ref("[::1]:5000", "a", "b")),
        ("r.io/a@sha256:" + "0" * 64, Ref("r.io", "a", "sha256:" + "0" * 64)),
    ],
)
def test_references(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize("text", ["", "ci", "team/ci:1", "r.io/", "r.io/A", "r.io/a:", "r.io/a@sha256:12", "r.io/a:b c", "r.io/../x", "r.io@x/a"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)


@pytest.fixture
def image(image_of: Images, tmp_path: Path) -> Path:
    (tmp_path / "source.raw").write_bytes(bytes(range(256)) * 12000)
    return image_of(say("pulled\n") + leave(6), DISK)


def test_push_and_pull(image: Path, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "CHUNK_BYTES", 1 << 20)  # several chunks
    assert main(["push", str(image), f"{host}/team/ci:1"]) == 0
    name = capfd.readouterr().out.strip()
    assert name.startswith(f"{host}/team/ci@sha256:")
    request = urllib.request.Request(f"http://{host}/v2/team/ci/manifests/1", headers={"Accept": registry.MANIFEST_TYPE})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        data = answer.read()
    assert name.endswith(sha256(data).hexdigest())
    manifest = json.loads(data)
    assert manifest["layers"][0]["mediaType"] == "application/vnd.kubevirt.disk.qcow2"
    assert manifest["annotations"] == {
        "org.opencontainers.image.title": "small", "org.opencontainers.image.description": "For tests", "team": "ci",
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    }  # fmt: skip
    for ref in (f"{host}/team/ci:1", name):
        assert main(["pull", ref, "--force"]) == 0
        assert capfd.readouterr().out == "ci.img\n"
        assert (tmp_path / "ci.img").read_bytes() == image.read_bytes()
    assert main(["push", str(image), f"{host}/team/ci:2"]) == 0  # the blobs are there
    assert capfd.readouterr().out.strip() == name
    assert main(["-q", "run", "ci.img"]) == 6
    assert main(["pull", f"{host}/team/ci:none", "-o", "none.img"]) == 127
    assert "there is no such image" in capfd.readouterr().err
    assert main(["pull", f"{host}/team/ci:1"]) == 125
    assert "ci.img exists" in capfd.readouterr().err


def test_the_root_of_a_container_image(host: str, tmp_path: Path) -> None:
    """Its layers are fetched once; what the cache has is looked at again."""

    def layer(name: str, data: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        return out.getvalue()

    name = f"{host}/base/image:1"
    there, rows = registry.Registry(parse_ref(name)), []
    for data in (b"{}", layer("etc/issue", b"first"), layer("etc/issue", b"second")):
        digest = registry.digest_of(data)
        there.put_blob(digest, io.BytesIO(data), len(data), lambda _: None)
        rows.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": len(data)})
    config = rows[0] | {"mediaType": "application/vnd.oci.image.config.v1+json"}
    manifest = {"schemaVersion": 2, "mediaType": registry.MANIFEST_TYPE, "config": config, "layers": rows[1:]}
    digest = there.put_manifest(json.dumps(manifest).encode())

    class Steps(Progress):
        seen: list[str] = []  # noqa: RUF012

        def step(self, text: str, total_bytes: int = 0) -> None:
            self.seen.append(text)

    def read(ref: str, cache: str = "cache", *, pin: Source | None = None, offline: bool = False) -> bytes:
        with ExitStack() as stack:
            tree, source = from_oci.fetch(ref, tmp_path / cache, Steps(), stack, None, pin=pin, offline=offline)
            node = tree.find(b"etc/issue")
            assert node is not None
            assert (source.origin, f"sha256:{source.sha256}", source.asked) == (f"{host}/base/image", digest, ref)
            return b"".join(node.content.pieces())

    assert read(name) == read(f"{host}/base/image@{digest}") == b"second"
    assert len(Steps.seen) == 2 and Steps.seen[0].startswith("fetching ")
    (tmp_path / "cache/oci" / rows[1]["digest"].removeprefix("sha256:")).write_bytes(b"damaged")
    assert read(name) == b"second"
    assert len(Steps.seen) == 3
    with pytest.raises(ImgvmError, match="there is no such image"):
        read(f"{host}/base/image:2")

    # A lock names the image that the tag was; offline, the cache has it or nobody.
    pin = Source(from_oci.PART, f"{host}/base/image", digest.removeprefix("sha256:"), 0, asked=name)
    moved = registry.Registry(parse_ref(name)).put_manifest(json.dumps(manifest | {"layers": rows[1:2]}).encode())
    assert moved != digest
    assert read(name, pin=pin) == read(name, pin=pin, offline=True) == read(name, "other", pin=pin) == b"second"
    with pytest.raises(ImgvmError, match=r"--offline: .*nobody is there to say what 1 is"):
        read(name, offline=True)
    with pytest.raises(ImgvmError, match=f"--offline: .*{digest[7:19]} is not in the cache"):
        read(name, "third", pin=pin, offline=True)


class Fake(BaseHTTPRequestHandler):
    """A registry that wants a token, sends blobs from elsewhere, and damages what it is told to."""

    blob = b"QFI\xfb" + bytes(1000)
    damage = ""
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012 (the fixture makes a new one)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        self.seen.append((self.path.partition("?")[0], authorization))
        port = self.server.server_address[1]
        size, digest = len(self.blob), f"sha256:{sha256(self.blob).hexdigest()}"
        if self.path.startswith("/token"):
            assert "scope=repository%3Aa%3Apull" in self.path and "service=fake" in self.path
            self.answer(200, b'{"token": "secret"}') if self.damage != "token" else self.answer(200, b"[]")
        elif self.path.startswith("/elsewhere"):
            self.answer(200, self.blob + b"x" if self.damage == "longer" else self.blob.replace(b"Q", b"q") if self.damage == "content" else self.blob)
        elif authorization != "Bearer secret":
            realm = "http://192.0.2.1/token" if self.damage == "realm" else f"http://127.0.0.1:{port}/token"
            challenge = "Magic" if self.damage == "challenge" else f'Bearer realm="{realm}",service="fake"'
            self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}', WWW_Authenticate=challenge)
        elif "/blobs/" in self.path:
            self.answer(307, Location=f"http://localhost:{port}/elsewhere")
        else:
            size = {"size": -1, "huge": 1 << 60}.get(self.damage, size)
            digest = "sha256:../../x" if self.damage == "digest" else digest
            kind = "text/plain" if self.damage == "type" else oci.LAYER_TYPE
            manifest = {"layers": [{"mediaType": kind, "digest": digest, "size": size}]}
            body = {"json": b"{", "list": b"[]", "deep": b"[" * 10**5, "big": bytes(5 << 20), "layers": b'{"layers": 5}'}
            self.answer(200, body.get(self.damage, json.dumps(manifest).encode()))


@pytest.fixture
def fake() -> Iterator[str]:
    Fake.seen, Fake.damage = [], ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_tokens_go_where_they_belong(fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = base64.b64encode(b"me:password").decode()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {fake: {"auth": login}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert main(["pull", f"{fake}/a:1", "-o", str(tmp_path / "a.img")]) == 0
    assert (tmp_path / "a.img").read_bytes() == Fake.blob
    assert ("/token", f"Basic {login}") in Fake.seen
    assert [value for path, value in Fake.seen if path == "/elsewhere"] == [None]  # another host: no token
    assert all(value in (None, "Bearer secret") for path, value in Fake.seen if path != "/token")


@pytest.mark.parametrize(
    "damage",
    ["token", "realm", "challenge", "content", "longer", "size", "huge", "digest", "type", "json", "list", "deep", "big", "layers"],
)
def test_what_a_registry_sends_is_checked(damage: str, fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
    Fake.damage = damage
    assert main(["pull", f"{fake}/a:1", "-o", str(tmp_path / "a.img")]) == 125
    said = capfd.readouterr().err
    assert said.count("\n") == 2 and "hint" in said and "fault of imgvm" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "127.0.0.1:1/a:1", "-o", str(tmp_path / "a.img")]) == 125
    assert "Connection refused" in capfd.readouterr().err


def test_encryption_is_not_given_up_silently(fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_LOCAL", ())
    assert main(["pull", f"{fake}/a:1", "-o", str(tmp_path / "a.img")]) == 125
    assert "--plain-http" in capfd.readouterr().err
    assert Fake.seen == []
    assert main(["pull", f"{fake}/a:1", "-o", str(tmp_path / "a.img"), "--plain-http"]) == 0
