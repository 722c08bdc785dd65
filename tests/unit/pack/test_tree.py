# SPDX-License-Identifier: MIT
"""File trees and where they come from: folders, tar archives, container images."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
import stat
import subprocess
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard
from builders import tar

from imgvm.errors import PackError
from imgvm.pack import from_dir, from_oci, from_tar
from imgvm.pack.tree import MAX_DEPTH, FileTree, Node, Text, excluding, folder

KIB, MIB = 1 << 10, 1 << 20


def names(tree: FileTree) -> set[str]:
    return {path.decode() for path, node in tree.walk() if not node.is_folder}


def data(tree: FileTree, path: str) -> bytes:
    node = tree.find(path.encode())
    assert node is not None and node.is_file
    whole = bytearray(node.content.size_bytes)
    pieces = b"".join(node.content.pieces())
    for offset, length in node.content.extents():
        whole[offset : offset + length], pieces = pieces[:length], pieces[length:]
    assert not pieces
    return bytes(whole)


def text(words: bytes = b"") -> Node:
    return Node(stat.S_IFREG | 0o644, content=Text(words))


def link(target: bytes) -> Node:
    return Node(stat.S_IFLNK | 0o777, target=target)


class TestTree:
    def test_links_on_the_way_stay_inside(self) -> None:
        tree = FileTree()
        tree.put(b"up", link(b"../../../../etc"))
        tree.put(b"abs", link(b"/usr/lib"))
        tree.put(b"up/passwd", text())
        tree.put(b"abs/x", text())
        assert names(tree) == {"up", "abs", "etc/passwd", "usr/lib/x"}

    @pytest.mark.parametrize("path", [b"../x", b"a/../../x", b"a/b/.."])
    def test_no_path_leads_out(self, path: bytes) -> None:
        with pytest.raises(PackError, match="leads out of the tree"):
            FileTree().put(path, text())

    @pytest.mark.parametrize(
        ("path", "words"),
        [(b"/".join([b"d"] * 300), "deep"), (b"n" * 256, "more than 255 bytes"), (b"a\0b", "NUL")],
    )
    def test_what_no_file_system_holds(self, path: bytes, words: str) -> None:
        with pytest.raises(PackError, match=words):
            FileTree().put(path, text())

    def test_circles_and_depth_through_links(self) -> None:
        tree = FileTree()
        tree.put(b"a", link(b"b"))
        tree.put(b"b", link(b"a"))
        with pytest.raises(PackError, match="circle"):
            tree.put(b"a/x", text())
        tree = FileTree()
        long = b"/".join([b"d"] * (MAX_DEPTH - 1))
        tree.put(long, folder())
        tree.put(b"l", link(long))
        with pytest.raises(PackError, match="deep"):
            tree.put(b"l/" + long, text())

    def test_a_folder_over_a_folder_keeps_what_is_in_it(self) -> None:
        tree = FileTree()
        tree.put(b"d/f", text())
        tree.put(b"d", folder(0o700))
        assert names(tree) == {"d/f"}
        assert stat.S_IMODE(tree.root.entries[b"d"].mode) == 0o700
        tree.put(b"d", text())
        assert names(tree) == {"d"}

    @pytest.mark.parametrize(
        ("pattern", "gone"),
        [
            ("*.pyc", {"a.pyc", "x/b.pyc"}),
            ("/x", {"x/b.pyc", "x/y/c", "x/[z"}),
            ("x/*", {"x/b.pyc", "x/y/c", "x/[z"}),
            ("/*.pyc", {"a.pyc"}),
            ("**/c", {"x/y/c", "c"}),
            ("x/**/c", {"x/y/c"}),
            ("?", {"x/b.pyc", "x/y/c", "x/[z", "c"}),
            ("[[]z", {"x/[z"}),
            ("x/[!y]*", {"x/b.pyc", "x/[z"}),
            ("x[", set()),
        ],
    )
    def test_what_is_excluded(self, pattern: str, gone: set[str]) -> None:
        tree = FileTree()
        every = {"a.pyc", "x/b.pyc", "x/y/c", "x/[z", "c", "dd"}
        for name in every:
            tree.put(name.encode(), text())
        tree.exclude(excluding([pattern]))
        assert names(tree) == every - gone


class TestFolders:
    def test_everything_is_roots(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        (tmp_path / "d/f").write_bytes(b"data")
        (tmp_path / "d/f").chmod(0o4755)
        (tmp_path / "g").hardlink_to(tmp_path / "d/f")
        (tmp_path / "l").symlink_to("nowhere")
        os.mkfifo(tmp_path / "p")
        tree = from_dir.read(tmp_path, keep_owner=False, mtime_sec=7)
        assert names(tree) == {"d/f", "g", "l", "p"}
        for _, node in tree.walk():
            assert (node.uid, node.gid, node.mtime_sec, node.xattrs) == (0, 0, 7, {})
        assert tree.find(b"g") is tree.find(b"d/f")
        assert data(tree, "g") == b"data"
        assert stat.S_IMODE(tree.root.entries[b"g"].mode) == 0o4755
        assert tree.root.entries[b"l"].target == b"nowhere"

    def test_owners_and_attributes_are_kept_on_request(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"")
        try:
            os.setxattr(tmp_path / "f", "user.mine", b"1")
        except OSError:
            pytest.skip("the file system knows no extended attributes")
        node = from_dir.read(tmp_path, keep_owner=True, mtime_sec=0).root.entries[b"f"]
        assert (node.uid, node.xattrs) == (os.getuid(), {"user.mine": b"1"})

    def test_holes_stay_holes(self, tmp_path: Path) -> None:
        with (tmp_path / "f").open("wb") as stream:
            stream.seek(MIB)
            stream.write(b"x" * 5000)
            stream.truncate(1 << 33)
        tree = from_dir.read(tmp_path, keep_owner=False, mtime_sec=0)
        node = tree.root.entries[b"f"]
        assert node.content.size_bytes == 1 << 33
        assert sum(length for _, length in node.content.extents()) < MIB
        assert b"x" * 5000 in b"".join(node.content.pieces())

    def test_what_is_excluded_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/f").write_bytes(b"")
        (tmp_path / "secret").chmod(0)
        try:
            tree = from_dir.read(tmp_path, keep_owner=False, mtime_sec=0, exclude=excluding(["/secret"]))
            assert names(tree) == set()
            if os.getuid():
                with pytest.raises(PermissionError):
                    from_dir.read(tmp_path, keep_owner=False, mtime_sec=0)
        finally:
            (tmp_path / "secret").chmod(0o755)

    def test_a_file_that_changes_meanwhile_is_seen(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"12345")
        tree = from_dir.read(tmp_path, keep_owner=False, mtime_sec=0)
        for other in (b"123", b"1234567"):
            (tmp_path / "f").write_bytes(other)
            with pytest.raises(PackError, match="changed while it was packed"):
                list(tree.root.entries[b"f"].content.pieces())


COMPRESSORS = {
    "plain": lambda raw: raw,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
    "zstd in two frames": lambda raw: zstandard.compress(raw[:700]) + zstandard.compress(raw[700:]),
}


def add(
    tree: FileTree, raw: bytes, stack: ExitStack, *, latest_sec: int | None = None, whiteouts: bool = False
) -> None:
    file = from_tar.temporary(stack)
    file.write(raw)
    file.flush()
    from_tar.add(tree, from_tar.unpacked(file, "t", stack), "t", latest_sec=latest_sec, whiteouts=whiteouts)


class TestArchives:
    @pytest.mark.parametrize("compression", COMPRESSORS)
    def test_every_kind_of_member(self, compression: str) -> None:
        raw = tar([
            ("./", {"type": tarfile.DIRTYPE, "mode": 0o755}, b""),
            ("./f", {"mode": 0o640, "uid": 1000, "gid": 50, "mtime": 1234}, b"hello"),
            ("./h", {"type": tarfile.LNKTYPE, "linkname": "./f"}, b""),
            ("./s", {"type": tarfile.SYMTYPE, "linkname": "../x"}, b""),
            ("./c", {"type": tarfile.CHRTYPE, "devmajor": 5, "devminor": 1}, b""),
            ("./b", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}, b""),
            ("./p", {"type": tarfile.FIFOTYPE}, b""),
            ("./" + "long/" * 40 + "é", {"pax_headers": {"SCHILY.xattr.user.a": "v\udcff"}}, b"deep"),
        ])  # fmt: skip
        tree = FileTree()
        with ExitStack() as stack:
            add(tree, COMPRESSORS[compression](raw), stack)
            assert data(tree, "f") == data(tree, "h") == b"hello"
            assert data(tree, "long/" * 40 + "é") == b"deep"
        node = tree.root.entries[b"f"]
        assert (node.mode, node.uid, node.gid, node.mtime_sec) == (0o100640, 1000, 50, 1234)
        assert node is tree.root.entries[b"h"]
        assert tree.root.entries[b"s"].target == b"../x"
        assert (tree.root.entries[b"c"].mode >> 12, tree.root.entries[b"c"].device) == (0o2, (5, 1))
        assert (tree.root.entries[b"b"].mode >> 12, tree.root.entries[b"p"].mode >> 12) == (0o6, 0o1)
        deep = tree.find(b"long/" * 40 + "é".encode())
        assert deep is not None and deep.xattrs == {"user.a": b"v\xff"}

    @pytest.mark.parametrize("form", ["gnu", "posix", "ustar"])
    def test_what_gnu_tar_writes(self, tmp_path: Path, form: str) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "plain").write_bytes(b"p" * 70000)
        with (source / "sparse").open("wb") as stream:
            for at in range(0, 30 * MIB, 2 * MIB):
                stream.seek(at)
                stream.write(b"s" * 4096)
            stream.truncate(40 * MIB)
        words = ["tar", "-C", source, "-cf", tmp_path / "t.tar", f"--format={form}"]
        if form != "ustar":
            (source / ("n" * 120)).write_bytes(b"long")
            words.append("--sparse")
        subprocess.run([*words, "."], check=True)
        tree = FileTree()
        with (tmp_path / "t.tar").open("rb") as file:
            from_tar.add(tree, file, "t", latest_sec=None)
            for path in source.iterdir():
                assert data(tree, path.name) == path.read_bytes(), path.name
            if form != "ustar":
                assert len(tree.root.entries[b"sparse"].content.extents()) >= 15

    def test_times_are_held_back(self) -> None:
        tree = FileTree()
        with ExitStack() as stack:
            add(tree, tar([("old", {"mtime": 5}, b""), ("new", {"mtime": 50}, b"")]), stack, latest_sec=9)
        assert [tree.root.entries[name].mtime_sec for name in (b"old", b"new")] == [5, 9]

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            ([("../x", {}, b"")], "leads out of the tree"),
            ([("h", {"type": tarfile.LNKTYPE, "linkname": "none"}, b"")], "hard link to /none"),
            ([("f", {}, b""), ("f/x", {}, b"")], "is a file, not a folder"),
            ([("f", {"uid": -5}, b"")], "no user and group"),
            ([("c", {"type": tarfile.CHRTYPE, "devmajor": 1 << 13}, b"")], "no device number"),
        ],
    )
    def test_members_that_cannot_be(self, members: list[tuple[str, dict[str, object], bytes]], words: str) -> None:
        with ExitStack() as stack, pytest.raises(PackError, match=words):
            add(FileTree(), tar(members, tarfile.GNU_FORMAT), stack)

    def test_damaged_archives(self) -> None:
        raw = tar([("f", {}, b"x" * 3000)])
        for wrong, words in (
            (raw[:1500], "cut short|not a readable tar|unexpected end"),
            (gzip.compress(raw)[:-20], "gzip data is damaged"),
            (zstandard.compress(raw)[:9] + b"junk", "zstd data is damaged"),
            (b"not a tar at all" * 100, "not a readable tar"),
        ):
            with ExitStack() as stack, pytest.raises(PackError, match=words):
                add(FileTree(), wrong, stack)

    def test_bombs_are_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(from_tar, "MIN_UNPACKED_LIMIT_BYTES", MIB)
        with ExitStack() as stack, pytest.raises(PackError, match="bomb"):
            add(FileTree(), gzip.compress(bytes(50 * MIB)), stack)

    def test_bytes_at_random(self) -> None:
        """Whatever is changed in an archive: a tree or a PackError, and nothing else."""
        luck = random.Random(1)
        form = tar([("f", {"uid": 1 << 22}, b"x" * 600), ("é" * 90, {"mtime": 1.5}, b""), ("d", {"type": tarfile.DIRTYPE}, b"")])
        for _ in range(400):
            raw = bytearray(form)
            for _ in range(luck.randint(1, 8)):
                raw[luck.randrange(len(raw))] = luck.choice(b"\0\xff 079-=\n" + bytes([luck.randrange(256)]))
            with ExitStack() as stack:
                try:
                    tree = FileTree()
                    add(tree, bytes(raw), stack)
                    for _, node in tree.walk():
                        if node.is_file:
                            assert sum(map(len, node.content.pieces())) <= len(raw)
                except PackError:
                    pass


class Layout:
    """An OCI image layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, raw: bytes, kind: str = "") -> dict[str, object]:
        digest = hashlib.sha256(raw).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(raw)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}

    def manifest(self, *layers: bytes) -> dict[str, object]:
        rows = [self.blob(layer) for layer in layers]
        return self.blob(json.dumps({"schemaVersion": 2, "config": self.blob(b"{}"), "layers": rows}).encode())

    def index(self, *rows: dict[str, object]) -> None:
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": rows}))


LOWER = tar([
    ("keep", {}, b"lower"), ("gone", {}, b""), ("dir/a", {}, b"a"), ("dir/b", {}, b"b"),
    ("opaque/x", {}, b""), ("opaque/sub/y", {}, b""), ("lib", {"type": tarfile.SYMTYPE, "linkname": "usr/lib"}, b""),
])  # fmt: skip
UPPER = tar([
    ("keep", {}, b"upper"), (".wh.gone", {}, b""), ("dir/.wh.a", {}, b""), ("opaque/new", {}, b""),
    ("opaque/.wh..wh..opq", {}, b""), ("lib/so", {}, b"so"), (".wh.never", {}, b""),
])  # fmt: skip
WANTED = {"keep", "dir/b", "opaque/new", "lib", "usr/lib/so"}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "image")
    made.index(made.manifest(gzip.compress(LOWER, mtime=0), zstandard.compress(UPPER)))
    return made


class TestImages:
    @pytest.mark.parametrize("form", ["folder", "archive", "archive.gz"])
    def test_layers_and_their_whiteouts(self, layout: Layout, tmp_path: Path, form: str) -> None:
        path = layout.folder
        if form != "folder":
            path = tmp_path / form
            subprocess.run(["tar", "-C", layout.folder, "-caf", path, "."], check=True)
        with ExitStack() as stack:
            tree, source = from_oci.read(path, "i", stack, None)
            assert names(tree) == WANTED
            assert (data(tree, "keep"), data(tree, "usr/lib/so")) == (b"upper", b"so")
        top = json.loads((layout.folder / "index.json").read_text())["manifests"][0]["digest"]
        assert (source.part, source.origin, f"sha256:{source.sha256}") == ("rootfs.oci", "i", top)

    def test_the_image_for_this_platform_is_chosen(self, layout: Layout) -> None:
        def row(layer: bytes, system: str, processor: str) -> dict[str, object]:
            return layout.manifest(layer) | {"platform": {"os": system, "architecture": processor}}

        arm, ours = row(UPPER, "linux", "arm64"), row(LOWER, "linux", "amd64")
        inner = layout.blob(json.dumps({"manifests": [arm, row(b"", "unknown", "unknown"), ours]}).encode())
        layout.index(inner)
        with ExitStack() as stack:
            assert "gone" in names(from_oci.read(layout.folder, "i", stack, None)[0])
        layout.index(arm)
        with ExitStack() as stack, pytest.raises(PackError, match="no image for linux/amd64"):
            from_oci.read(layout.folder, "i", stack, None)

    def test_what_docker_saves(self, tmp_path: Path) -> None:
        manifest = json.dumps([{"Config": "c", "Layers": ["one/layer.tar", "two/layer.tar"]}]).encode()
        members = [("manifest.json", manifest), ("one/layer.tar", LOWER), ("two/layer.tar", UPPER)]
        (tmp_path / "saved.tar").write_bytes(tar([(name, {}, content) for name, content in members]))
        with ExitStack() as stack:
            assert names(from_oci.read(tmp_path / "saved.tar", "i", stack, None)[0]) == WANTED

    def test_bombs_are_seen_in_all_layers_together(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(from_tar, "MIN_UNPACKED_LIMIT_BYTES", 2 * MIB)
        monkeypatch.setattr(from_tar, "MAX_RATIO", 1)
        image = Layout(tmp_path / "image")
        layers = [gzip.compress(tar([(f"f{index}", {}, bytes(MIB // 2))])) for index in range(6)]
        image.index(image.manifest(*layers[:3]))
        with ExitStack() as stack:
            assert names(from_oci.read(image.folder, "i", stack, None)[0]) == {"f0", "f1", "f2"}
        image.index(image.manifest(*layers))
        with ExitStack() as stack, pytest.raises(PackError, match="bomb"):
            from_oci.read(image.folder, "i", stack, None)

    def test_a_layer_that_is_named_often_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = json.dumps([{"Layers": ["one", "two", *["one"] * 100]}]).encode()
        (tmp_path / "saved.tar").write_bytes(tar([("manifest.json", {}, manifest), ("one", {}, gzip.compress(LOWER)), ("two", {}, UPPER)]))
        made = []
        temporary = from_tar.temporary
        monkeypatch.setattr(from_tar, "temporary", lambda stack: made.append(1) or temporary(stack))
        with ExitStack() as stack:
            assert "gone" in names(from_oci.read(tmp_path / "saved.tar", "i", stack, None)[0])
        assert len(made) <= 6

    def test_a_blob_must_be_what_it_is_called(self, layout: Layout) -> None:
        for path in (layout.folder / "blobs/sha256").iterdir():
            kept = path.read_bytes()
            path.write_bytes(kept + b" ")
            if kept != b"{}":
                with ExitStack() as stack, pytest.raises(PackError, match="another digest"):
                    from_oci.read(layout.folder, "i", stack, None)
            path.write_bytes(kept)

    @pytest.mark.parametrize(
        ("index", "words"),
        [
            ("[]", "has no layers"),
            ("{", "not JSON"),
            ('{"manifests": [{"digest": "md5:1"}]}', "no SHA-256 digest"),
            ('{"manifests": [{"digest": "sha256:%s"}]}' % ("0" * 64), "lacks blobs"),
            ('{"layers": [{"digest": "sha256:%s", "size": -1}]}' % ("0" * 64), "no size"),
            ('{"layers": [{"digest": "../../etc/passwd", "size": 1}]}', "no SHA-256 digest"),
        ],
    )
    def test_images_that_are_none(self, layout: Layout, index: str, words: str) -> None:
        (layout.folder / "index.json").write_text(index)
        with ExitStack() as stack, pytest.raises(PackError, match=words):
            from_oci.read(layout.folder, "i", stack, None)

    def test_a_layout_does_not_lead_out_of_its_folder(self, layout: Layout, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(LOWER)
        for path in (layout.folder / "blobs/sha256").iterdir():
            if path.stat().st_size > 100:
                path.unlink()
                path.symlink_to(tmp_path / "secret")
        with ExitStack() as stack, pytest.raises(PackError, match="lacks"):
            from_oci.read(layout.folder, "i", stack, None)
