# SPDX-License-Identifier: MIT
"""Packages through stand-ins for apt-get and apt-cache: a folder of packages made by dpkg-deb."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from builders import kernel, module_tree, skip_when_offline

from imgvm.errors import PackError
from imgvm.pack import apt
from imgvm.pack.apt import LISTS_FRESH_SECONDS, Package
from imgvm.pack.deb import Deb, DebCache, digest, kernel_dependency, suite_of, unpack
from imgvm.pack.progress import Progress
from imgvm.pack.sources import Source

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")

SHELL_APT = """#!/bin/sh
# Serves the packages of $REPO: <name>.deb and <name>.control.
echo "$(basename "$0") $*" >>"$REPO/log"
[ -e "$REPO/offline" ] && { echo "E: Could not resolve 'deb.debian.org'" >&2; exit 100; }
for last; do :; done
name=${last%%=*}
case "$*" in
*update*) [ -s "$APT_CONFIG" ] && cp "$APT_CONFIG" "$REPO/apt.conf" ;;
*show*) cat "$REPO/$name.control" 2>/dev/null || { echo "E: No packages found" >&2; exit 100; } ;;
*--print-uris*) echo "'http://user:secret@example.org/pool/$name.deb' $name.deb 1 SHA256:0" ;;
*download*) cp "$REPO/$name.deb" . ;;
esac
"""


class Notes(Progress):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []

    def step(self, text: str, total_bytes: int = 0) -> None:
        self.steps.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Repo:
    """An archive in a folder, the stand-ins on PATH, a cache, and a clock."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "repo"
        self.root.mkdir()
        programs = root / "bin"
        programs.mkdir()
        for name in ("apt-get", "apt-cache"):
            (programs / name).write_text(SHELL_APT)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setenv("REPO", str(self.root))
        keyring = root / "keyring.gpg"
        keyring.touch()
        monkeypatch.setattr(apt, "KEYRING", keyring)
        self.now = 1_000_000.0
        self.progress = Notes()
        self.cache = DebCache(root / "cache", self.progress, clock=lambda: self.now)

    def add(self, name: str, files: dict[str, bytes], depends: str = "", sha256: str | None = None) -> None:
        tree = self.root / f"{name}.tree"
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: 1.0-1\nArchitecture: amd64\nMaintainer: x <x@example.org>\n"
        (tree / "DEBIAN/control").write_text(control + "Description: test\n")
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        deb = self.root / f"{name}.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
        stanza = control + (f"Depends: {depends}\n" if depends else "")
        stanza += f"Filename: pool/{name}_1.0-1_amd64.deb\nSize: {deb.stat().st_size}\n"
        (self.root / f"{name}.control").write_text(stanza + f"SHA256: {sha256 or digest(deb)}\n")

    def add_kernel(self) -> None:
        modules = module_tree(self.root / "modules")
        files = {
            f"lib/modules/6.1.0-test/{path.relative_to(modules)}": path.read_bytes()
            for path in modules.rglob("*")
            if path.is_file()
        }
        files["boot/vmlinuz-6.1.0-test"] = kernel()
        files["usr/share/doc/README"] = b"not wanted"
        self.add("linux-image-6.1.0-test", files)
        self.add("linux-image-test", {}, depends="linux-base, linux-image-6.1.0-test (= 1.0-1)")

    def calls(self) -> list[str]:
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def go_offline(self) -> None:
        (self.root / "offline").touch()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    return Repo(tmp_path, monkeypatch)


@needs_dpkg
def test_metapackage_leads_to_the_kernel(repo: Repo) -> None:
    repo.add_kernel()
    deb = repo.cache.kernel("debian:trixie", "linux-image-test")
    assert (deb.name, deb.version, deb.suite) == ("linux-image-6.1.0-test", "1.0-1", "trixie")
    assert deb.uri == "http://example.org/pool/linux-image-6.1.0-test.deb"
    assert digest(deb.path) == deb.sha256
    folder = repo.cache.unpacked(deb)
    assert (folder / "boot/vmlinuz-6.1.0-test").read_bytes() == kernel()
    assert (folder / "lib/modules/6.1.0-test/kernel/drivers/virtio/virtio_ring.ko").is_file()
    assert not (folder / "usr").exists() and not (folder / "share").exists()


@needs_dpkg
def test_fresh_names_ask_nobody(repo: Repo) -> None:
    repo.add_kernel()
    deb = repo.cache.kernel("debian:trixie", "linux-image-test")
    calls = repo.calls()
    assert repo.cache.kernel("debian:13", "linux-image-test") == deb
    assert repo.calls() == calls
    repo.now += LISTS_FRESH_SECONDS + 1
    assert repo.cache.kernel("debian:trixie", "linux-image-test") == deb
    new = repo.calls()[len(calls) :]
    assert any("show" in call for call in new)
    assert not any(call.startswith("apt-get download") for call in new)  # its content is in the cache


@needs_dpkg
def test_offline_uses_the_cache_and_says_so(repo: Repo) -> None:
    repo.add_kernel()
    deb = repo.cache.kernel("debian:trixie", "linux-image-test")
    repo.go_offline()
    repo.now += LISTS_FRESH_SECONDS + 1
    assert repo.cache.kernel("debian:trixie", "linux-image-test") == deb
    assert repo.progress.notes and "linux-image-6.1.0-test 1.0-1 from the cache" in repo.progress.notes[0]


def test_offline_without_a_cache_is_an_error(repo: Repo) -> None:
    repo.go_offline()
    with pytest.raises(PackError, match="Debian's archive cannot be reached") as caught:
        repo.cache.kernel("debian:trixie", "linux-image-test")
    assert "path" in (caught.value.hint or "")


def test_unknown_package(repo: Repo) -> None:
    with pytest.raises(PackError, match="cannot look up nosuch: No packages found"):
        repo.cache.get("debian:trixie", "nosuch")
    assert sum("update" in call for call in repo.calls()) == 2  # the lists may have been old


@needs_dpkg
def test_wrong_digest_is_refused(repo: Repo) -> None:
    repo.add("tool", {"bin/busybox": b"x"}, sha256="0" * 64)
    with pytest.raises(PackError, match="the archive's index says SHA-256 0000"):
        repo.cache.get("debian:trixie", "tool")
    assert not list((repo.cache.folder / "deb").glob("*.deb"))


@needs_dpkg
def test_damage_in_the_cache_is_found_and_mended(repo: Repo) -> None:
    repo.add("tool", {"bin/busybox": b"x"})
    deb = repo.cache.get("debian:trixie", "tool")
    deb.path.write_bytes(b"damaged")
    with pytest.raises(PackError, match="was damaged, and has been removed"):
        repo.cache.unpacked(deb)
    again = repo.cache.get("debian:trixie", "tool")
    assert (repo.cache.unpacked(again) / "bin/busybox").read_bytes() == b"x"


@needs_dpkg
@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"record": 1, "seen": "x"}', '{"record": 2}'])
def test_damaged_records_are_ignored(repo: Repo, text: str) -> None:
    repo.add("tool", {"bin/busybox": b"x"})
    deb = repo.cache.get("debian:trixie", "tool")
    record = repo.cache.folder / "deb/records/trixie/tool.json"
    assert json.loads(record.read_text())["sha256"] == deb.sha256
    record.write_text(text)
    assert repo.cache.get("debian:trixie", "tool") == deb


def test_without_apt(repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PackError, match="apt-get is not here") as caught:
        repo.cache.get("debian:trixie", "tool")
    assert caught.value.hint


@needs_dpkg
def test_what_is_no_package(tmp_path: Path) -> None:
    bad = tmp_path / "bad.deb"
    bad.write_bytes(b"!<arch>\nhello")
    with pytest.raises(PackError, match=r"bad\.deb is not a readable Debian package"):
        unpack(bad, tmp_path / "out")


@needs_dpkg
def test_a_cache_that_cannot_be_used(repo: Repo, tmp_path: Path) -> None:
    repo.add("tool", {"bin/busybox": b"x"})
    deb = repo.cache.get("debian:trixie", "tool")
    (repo.cache.folder / "unpacked").write_text("in the way")
    with pytest.raises(PackError, match=r"the cache .* cannot be used: File exists") as caught:
        repo.cache.unpacked(deb)
    assert "XDG_CACHE_HOME" in (caught.value.hint or "")
    (tmp_path / "file").touch()
    with pytest.raises(PackError, match="cannot be used: Not a directory"):
        DebCache(tmp_path / "file/cache").get("debian:trixie", "tool")


@needs_dpkg
def test_links_and_other_folders_are_left_out(repo: Repo, tmp_path: Path) -> None:
    repo.add("odd", {"usr/lib/modules/1/kernel/a.ko": b"a", "etc/passwd": b"no"})
    (repo.root / "odd.tree/usr/lib/modules/1/build").symlink_to("/etc")
    subprocess.run(
        ["dpkg-deb", "-b", repo.root / "odd.tree", tmp_path / "o.deb"], check=True, capture_output=True
    )
    unpack(tmp_path / "o.deb", tmp_path / "out")
    assert [
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if not path.is_dir()
    ] == ["lib/modules/1/kernel/a.ko"]


def test_configuration_has_folders_of_its_own_and_no_hooks(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(apt, "OS_RELEASE", tmp_path / "none")
    with pytest.raises(PackError):
        repo.cache.get("debian:trixie", "tool")
    text = (repo.root / "apt.conf").read_text()
    assert f'Dir::State "{repo.cache.folder}/apt/trixie";' in text
    assert "Dir::Etc::sourcelist" in text and "Post-Invoke" not in text


def test_sources_of_debians_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apt, "KEYRING", tmp_path / "keys")
    with pytest.raises(PackError) as caught:
        apt.archive_sources("bookworm")
    assert caught.value.hint == "apt install debian-archive-keyring"
    (tmp_path / "keys").touch()
    assert apt.archive_sources("bookworm").count("deb ") == 3
    assert apt.archive_sources("sid").count("deb ") == 1


def test_host_suite(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    assert apt.host_suite(path) is None
    path.write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    assert apt.host_suite(path) == "bookworm"
    path.write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    assert apt.host_suite(path) is None


def test_stanzas() -> None:
    assert apt.parse_stanza("A: 1\nB: x\n y\n\nA: 2\n") == {"A": "1", "B": "x\ny"}
    assert apt.parse_stanza("") == {}


@pytest.mark.parametrize(
    ("errors", "words", "hint"),
    [
        ("E: Unable to locate package x", "Unable to locate", "packages.debian.org"),
        ("E: The repository 'u r Release' does not have a Release file.", "does not have", "Debian suite"),
        ("W: x\nE: Failed to fetch u  Connection failed", "cannot be reached", "path"),
        ("something odd", "something odd", ""),
        ("", "apt failed", ""),
    ],
)
def test_what_apt_says_becomes_an_error(errors: str, words: str, hint: str) -> None:
    error = apt.failure("do it", errors)
    assert words in error.message and hint in (error.hint or "")


def test_names() -> None:
    assert suite_of("debian:12") == "bookworm" and suite_of("debian:sid") == "sid"
    for bad in ("ubuntu:noble", "debian", "debian:"):
        with pytest.raises(PackError, match="cannot fetch from"):
            suite_of(bad)

    def package(name: str, depends: str) -> Package:
        return Package(name, "1", depends, "", 0, "")

    assert (
        kernel_dependency(package("linux-image-amd64", "linux-image-6.1-amd64 (= 1)"))
        == "linux-image-6.1-amd64"
    )
    assert kernel_dependency(package("linux-image-6.1-amd64", "linux-image-other")) is None
    assert kernel_dependency(package("linux-image-amd64", "kmod, linux-base (>= 4)")) is None


@pytest.mark.network
def test_debians_own_archive(tmp_path: Path) -> None:
    cache = DebCache(tmp_path)
    with skip_when_offline():
        deb = cache.get("debian:bookworm", "busybox-static")
    assert isinstance(deb, Deb) and deb.uri.endswith(".deb")
    assert (cache.unpacked(deb) / "bin/busybox").read_bytes().startswith(b"\x7fELF")


@pytest.mark.network
def test_unknown_suite(tmp_path: Path) -> None:
    with pytest.raises(PackError) as caught, skip_when_offline():
        DebCache(tmp_path).get("debian:nosuchsuite", "busybox-static")
    assert "Debian suite" in (caught.value.hint or "")


@needs_dpkg
def test_a_pinned_package_is_taken_whatever_is_newest(repo: Repo) -> None:
    repo.add_kernel()
    deb = repo.cache.kernel("debian:trixie", "linux-image-test")
    row = Source("boot.kernel", f"trixie {deb.name} {deb.version}", deb.sha256, deb.size_bytes, deb.uri, "asked")
    calls = repo.calls()
    assert repo.cache.pinned(row) == deb and repo.calls() == calls
    deb.path.unlink()
    assert repo.cache.pinned(row) == deb and deb.path.exists()
    assert f"apt-get download {deb.name}=1.0-1" in repo.calls()
    gone = replace(row, origin=f"trixie {deb.name} 0.9-1", sha256="0" * 64)
    with pytest.raises(PackError, match=rf"--frozen: boot.kernel: {deb.name} 0.9-1 .SHA-256 0+. cannot be had: .* the file has {deb.sha256}"):
        repo.cache.pinned(gone)
    with pytest.raises(PackError, match="names no package"):
        repo.cache.pinned(replace(row, origin="vmlinuz"))


@needs_dpkg
def test_offline_asks_nobody(repo: Repo) -> None:
    repo.add_kernel()
    offline = DebCache(repo.cache.folder, repo.progress, clock=lambda: repo.now, offline=True)
    with pytest.raises(PackError, match="--offline: linux-image-test of Debian trixie is not in the cache"):
        offline.kernel("debian:trixie", "linux-image-test")
    deb = repo.cache.kernel("debian:trixie", "linux-image-test")
    calls = repo.calls()
    repo.now += LISTS_FRESH_SECONDS + 1
    assert offline.kernel("debian:trixie", "linux-image-test") == deb
    with pytest.raises(PackError, match=r"--offline: a 1 .SHA-256 0+. is not in the cache"):
        offline.pinned(Source("boot.kernel", "trixie a 1", "0" * 64, 1))
    assert repo.calls() == calls
