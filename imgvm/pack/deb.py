# SPDX-License-Identifier: MIT
"""Debian packages as sources: fetched once, kept by content in the cache, unpacked as far as packing needs.

    cache/deb/<sha256>.deb                 the packages
    cache/deb/records/<suite>/<name>.json  which package a name meant when it was last looked up
    cache/unpacked/<sha256>/               kernels, modules, busybox and GRUB out of them
    cache/apt/<suite>/                     apt's package lists

A name is looked up again after a day; without a network, what the cache has is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from imgvm.errors import PackError
from imgvm.pack.apt import LISTS_FRESH_SECONDS, Apt, Package
from imgvm.pack.progress import Progress
from imgvm.pack.sources import Source

_NUMBERS = {"11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"}
_WANTED = re.compile(r"(?:usr/)?(?:boot/vmlinuz-|lib/modules/|bin/busybox$|lib/grub/i386-pc/)")
_KERNEL_NAME = re.compile(r"linux-image-[a-z0-9.+-]+")
_MAX_HOPS = 4
_RECORD_VERSION = 1
OFFLINE_HINT = "pack once without --offline"


@dataclass(frozen=True)
class Deb:
    """A package in the cache."""

    suite: str
    name: str
    version: str
    uri: str
    sha256: str
    size_bytes: int
    path: Path


class DebCache:
    """Fetches and keeps packages. `clock` and `apt` are replaced by tests."""

    def __init__(
        self,
        folder: Path,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.time,
        apt: Callable[[str, Path, Progress], Apt] = Apt,
        *,
        offline: bool = False,
    ) -> None:
        self.folder = folder
        self._progress = progress or Progress()
        self._clock = clock
        self._apt = apt
        self.offline = offline

    def kernel(self, distro: str, package: str) -> Deb:
        """The kernel package that `package` is or depends on (linux-image-cloud-amd64 names no version)."""
        return self.get(distro, package, follow_kernel=True)

    def get(self, distro: str, package: str, *, follow_kernel: bool = False) -> Deb:
        """A package of `distro` (`debian:<suite>`), from the cache where that is fresh or all there is."""
        suite = suite_of(distro)
        known = self._recall(suite, package)
        if known is not None and (known[1] < LISTS_FRESH_SECONDS or self.offline):
            return known[0]
        if self.offline:
            raise PackError(f"--offline: {package} of Debian {suite} is not in the cache", OFFLINE_HINT)
        try:
            with self._usable():
                return self._fetch(suite, package, follow_kernel)
        except PackError as error:
            if known is None:
                raise
            deb = known[0]
            self._progress.note(f"using {deb.name} {deb.version} from the cache: {error.message}")
            return deb

    def pinned(self, row: Source) -> Deb:
        """The very package that a lock names, from the cache or the archive."""
        try:
            suite, name, version = row.origin.split(" ")
        except ValueError:
            raise PackError(f"{row.part}: {row.origin} names no package", "pack without --frozen") from None
        path = self.folder / "deb" / f"{row.sha256}.deb"
        deb = Deb(suite_of(f"debian:{suite}"), name, version, row.uri, row.sha256, row.size_bytes, path)
        if path.exists() or (self.folder / "unpacked" / row.sha256).is_dir():
            return deb
        if self.offline:
            message = f"--offline: {name} {version} (SHA-256 {row.sha256}) is not in the cache"
            raise PackError(message, OFFLINE_HINT)
        package = Package(name, version, "", "", row.size_bytes, row.sha256)
        with self._usable():
            apt = self._apt(suite, self.folder / "apt" / suite, self._progress)
            apt.update()
            try:
                return self._download(apt, suite, package)
            except PackError as error:
                what = f"{row.part}: {name} {version} (SHA-256 {row.sha256})"
                raise PackError(
                    f"--frozen: {what} cannot be had: {error.message}",
                    "archives keep the newest version only; pack without --frozen takes that",
                ) from error

    def unpacked(self, deb: Deb) -> Path:
        """A folder with the package's kernels, modules, busybox and GRUB."""
        target = self.folder / "unpacked" / deb.sha256
        if target.is_dir():
            return target
        self._progress.step(f"unpacking {deb.name}")
        self._check(deb)
        with self._usable():
            self._unpack(deb, target)
        return target

    def _unpack(self, deb: Deb, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            unpack(deb.path, scratch)
            scratch.chmod(0o755)
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # else another packer was faster
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """What the host refuses here, it refuses of the cache, not of the image."""
        try:
            yield
        except OSError as error:
            raise PackError(
                f"the cache {self.folder} cannot be used: {error.strerror or error}",
                hint="free some space, or set XDG_CACHE_HOME to another folder",
            ) from error

    def _fetch(self, suite: str, name: str, follow_kernel: bool) -> Deb:
        apt = self._apt(suite, self.folder / "apt" / suite, self._progress)
        apt.update()
        try:
            package = self._resolve(apt, name, follow_kernel)
            deb = self._download(apt, suite, package)
        except PackError:
            apt.update(force=True)  # the lists may be older than the archive's latest change
            package = self._resolve(apt, name, follow_kernel)
            deb = self._download(apt, suite, package)
        self._record(suite, name, deb)
        return deb

    def _resolve(self, apt: Apt, name: str, follow_kernel: bool) -> Package:
        package = apt.show(name)
        for _ in range(_MAX_HOPS):
            wanted = kernel_dependency(package) if follow_kernel else None
            if wanted is None:
                return package
            package = apt.show(wanted)
        raise PackError(f"{name} leads through too many packages to a kernel")

    def _download(self, apt: Apt, suite: str, package: Package) -> Deb:
        target = self.folder / "deb" / f"{package.sha256}.deb"
        deb = Deb(
            suite, package.name, package.version, apt.uri(package), package.sha256, package.size_bytes, target
        )
        if target.exists() and digest(target) == package.sha256:
            return deb
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as scratch:
            fetched = apt.download(package, Path(scratch))
            found = digest(fetched)
            if found != package.sha256:
                raise PackError(
                    f"{package.name}: the archive's index says SHA-256 {package.sha256}, the file has {found}"
                )
            fetched.rename(target)
        return deb

    def _check(self, deb: Deb) -> None:
        if digest(deb.path) != deb.sha256:
            deb.path.unlink(missing_ok=True)
            raise PackError(f"{deb.path} in the cache was damaged, and has been removed", hint="pack again")

    def _record_path(self, suite: str, name: str) -> Path:
        return self.folder / "deb" / "records" / suite / f"{name}.json"

    def _record(self, suite: str, name: str, deb: Deb) -> None:
        path = self._record_path(suite, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {key: value for key, value in asdict(deb).items() if key != "path"}
        text = json.dumps({"record": _RECORD_VERSION, "seen": self._clock(), **row}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)

    def _recall(self, suite: str, name: str) -> tuple[Deb, float] | None:
        """What the name meant last time, and how many seconds ago; None when the cache has not got it."""
        try:
            row = json.loads(self._record_path(suite, name).read_text())
            if row.pop("record") != _RECORD_VERSION:
                return None
            age = self._clock() - float(row.pop("seen"))
            deb = Deb(path=self.folder / "deb" / f"{row['sha256']}.deb", **row)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        kept = deb.path.exists() or (self.folder / "unpacked" / deb.sha256).is_dir()
        return (deb, age if age >= 0 else LISTS_FRESH_SECONDS) if kept else None


def suite_of(distro: str) -> str:
    """`debian:12` and `debian:bookworm` are bookworm."""
    family, _, suite = distro.partition(":")
    if family != "debian" or not suite:
        raise PackError(f"imgvm cannot fetch from {distro}", hint="debian:<suite>, such as debian:bookworm")
    return _NUMBERS.get(suite, suite)


def kernel_dependency(package: Package) -> str | None:
    """The kernel image that a metapackage stands for; None for a kernel image itself."""
    if re.match(r"linux-image-(?:unsigned-)?[0-9]", package.name):
        return None
    for clause in package.depends.split(","):
        match = _KERNEL_NAME.match(clause.strip())
        if match and match[0] != package.name:
            return match[0]
    return None


def unpack(package: Path, target: Path) -> None:
    """Writes the wanted regular files of a package below `target`. Links and devices are left out."""
    try:
        process = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError:
        raise PackError("dpkg-deb is needed to read Debian's packages", hint="install dpkg") from None
    assert process.stdout is not None and process.stderr is not None
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isfile() and _WANTED.match(name) and ".." not in name.split("/"):
                        file = target / name.removeprefix("usr/")
                        file.parent.mkdir(parents=True, exist_ok=True)
                        source = archive.extractfile(member)
                        assert source is not None
                        with file.open("wb") as out:
                            shutil.copyfileobj(source, out, 1 << 20)
        except tarfile.TarError as error:
            raise PackError(f"{package.name} is not a readable Debian package ({error})") from error
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise PackError(f"{package.name} is not a readable Debian package: {message}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}", errno=error.errno or 0) from error
