# SPDX-License-Identifier: MIT
"""Asks apt for packages of a Debian suite, as any user, without touching the host's own package state.

apt gets a state folder of its own under imgvm's cache. Where the host runs the very suite that is asked for,
the host's sources (and so its mirrors) are used; otherwise a list of Debian's own archive is written.
apt checks the archive's signatures in both cases.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgvm.errors import PackError
from imgvm.pack.progress import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OS_RELEASE = Path("/etc/os-release")
LISTS_FRESH_SECONDS = 24 * 3600
_POLL_SECONDS = 0.1
_PATIENCE = 'Acquire::Retries "2"; Acquire::http::Timeout "15"; Acquire::https::Timeout "15";\n'
_WITHOUT_SECURITY = {"sid", "unstable", "experimental", "rc-buggy"}
_NETWORK = re.compile(
    r"could not resolve|temporary failure|could not connect|unable to connect|"
    r"connection (failed|timed out|refused)|network is unreachable|no route to host|failed to fetch",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Package:
    """What the archive's index says of one package's candidate version."""

    name: str
    version: str
    depends: str
    filename: str
    size_bytes: int
    sha256: str


class Apt:
    """apt for one suite. `folder` holds its state between runs."""

    def __init__(self, suite: str, folder: Path, progress: Progress) -> None:
        self.suite = suite
        self._folder = folder
        self._progress = progress
        self._host_sources = host_suite() == suite

    def show(self, name: str) -> Package:
        """The candidate version of a package."""
        output = self._run(["apt-cache", "show", "--no-all-versions", name], f"look up {name}")
        fields = parse_stanza(output)
        try:
            return Package(
                name=fields["Package"],
                version=fields["Version"],
                depends=fields.get("Depends", ""),
                filename=fields["Filename"].rsplit("/", 1)[-1],
                size_bytes=int(fields["Size"]),
                sha256=fields["SHA256"].lower(),
            )
        except (KeyError, ValueError) as error:
            raise PackError(
                f"Debian {self.suite} has no package {name}", hint="look it up on packages.debian.org"
            ) from error

    def uri(self, package: Package) -> str:
        """Where the package would be fetched from, without a mirror's password: the image is handed on."""
        command = ["apt-get", "--print-uris", "download", f"{package.name}={package.version}"]
        match = re.match(r"'([^']+)'", self._run(command, f"find {package.name}"))
        return re.sub(r"(://)[^/@]*@", r"\1", match[1]) if match else ""

    def download(self, package: Package, folder: Path) -> Path:
        """Fetches a package into `folder`."""
        text = f"fetching {package.name} {package.version}"
        command = ["apt-get", "download", f"{package.name}={package.version}"]
        self._progress.step(text, package.size_bytes)
        self._run(command, f"fetch {package.name}", cwd=folder)
        files = list(folder.glob("*.deb"))
        if len(files) != 1:
            raise PackError(f"apt-get fetched {len(files)} files for {package.name}, not one")
        return files[0]

    def update(self, *, force: bool = False) -> None:
        """Fetches the archive's indexes, unless that was done lately."""
        stamp = self._folder / "updated"
        try:
            fresh = 0 <= time.time() - stamp.stat().st_mtime < LISTS_FRESH_SECONDS
        except OSError:
            fresh = False
        if fresh and not force:
            return
        self._progress.step(f"fetching the package lists of Debian {self.suite}")
        with self._locked():
            try:
                self._fetch_lists()
            except PackError:
                if not self._host_sources:
                    raise
                self._host_sources = False  # one of the host's repositories is broken: Debian's own will do
                self._fetch_lists()
            stamp.touch()

    def _fetch_lists(self) -> None:
        self._run(["apt-get", "--error-on=any", "update"], f"read the package lists of Debian {self.suite}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two packers take turns at the package lists."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "imgvm.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _run(self, command: list[str], what: str, cwd: Path | None = None) -> str:
        """Runs one of apt's programs with a configuration of our own; returns what it printed."""
        with tempfile.TemporaryDirectory(prefix="imgvm-apt-") as scratch:
            config = Path(scratch) / "apt.conf"
            config.write_text(self._config(Path(scratch)))
            environment = {**os.environ, "LC_ALL": "C", "APT_CONFIG": str(config)}
            output, errors = Path(scratch) / "out", Path(scratch) / "err"
            with output.open("wb") as out, errors.open("wb") as err:
                process = _start(command, environment, out, err, cwd or Path(scratch))
                try:
                    while process.poll() is None:
                        if cwd is not None:
                            self._progress.advance(_bytes_in(cwd))
                        try:
                            process.wait(_POLL_SECONDS)
                        except subprocess.TimeoutExpired:
                            continue
                finally:
                    if process.poll() is None:
                        process.terminate()
                        process.wait()
            text = errors.read_text(errors="replace")
            if process.returncode != 0:
                raise failure(what, text)
            return output.read_text(errors="replace")

    def _config(self, scratch: Path) -> str:
        """apt.conf: the host's ways of fetching (such as proxies), none of its hooks, folders of our own."""
        state = self._folder
        for folder in ("lists/partial", "archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        rows = {
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",  # else, as root, apt drops to a user that cannot write here
            "Acquire::Languages": "none",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": str(scratch / "none"),
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": str(scratch / "none"),
            "Dir::State": str(state),
            "Dir::State::lists": str(state / "lists"),
            "Dir::State::status": str(state / "status"),
            "Dir::Cache": str(state),
            "Dir::Cache::archives": str(state / "archives"),
        }
        if not self._host_sources:
            sources = scratch / "sources.list"
            sources.write_text(archive_sources(self.suite))
            rows["Dir::Etc::sourcelist"] = str(sources)
            rows["Dir::Etc::sourceparts"] = str(scratch / "none")
        (scratch / "none").mkdir(exist_ok=True)
        lines = [f"{key} {_quote(value)};\n" for key, value in rows.items()]
        return "".join([_PATIENCE, *_host_acquire(), *lines, 'APT::Architectures { "amd64"; };\n'])


def parse_stanza(text: str) -> dict[str, str]:
    """The fields of the first stanza of a control file; continuation lines are joined."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip():
            if fields:
                break
        elif line[0] in " \t":
            fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields


def host_suite(os_release: Path | None = None) -> str | None:
    """The Debian suite that this host runs; None on other systems."""
    try:
        text = (os_release or OS_RELEASE).read_text()
    except OSError:
        return None
    rows = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if rows.get("ID", "").strip("\"'") != "debian":
        return None
    return rows.get("VERSION_CODENAME", "").strip("\"'") or None


def archive_sources(suite: str) -> str:
    """A sources.list of Debian's own archive."""
    if not KEYRING.exists():
        raise PackError(
            f"the keys of Debian's archive are not here ({KEYRING})",
            hint="apt install debian-archive-keyring",
        )
    signed = f"[arch=amd64 signed-by={KEYRING}]"
    lines = [f"deb {signed} http://deb.debian.org/debian {suite} main\n"]
    if suite not in _WITHOUT_SECURITY:
        lines.append(f"deb {signed} http://deb.debian.org/debian {suite}-updates main\n")
        lines.append(f"deb {signed} http://deb.debian.org/debian-security {suite}-security main\n")
    return "".join(lines)


def failure(what: str, errors: str) -> PackError:
    """The error that apt's words mean."""
    lines = [line[3:].strip() for line in errors.splitlines() if line.startswith("E: ")]
    reason = lines[0] if lines else (errors.strip().splitlines() or ["apt failed"])[-1]
    if "does not have a Release file" in errors or re.search(r"404\s+Not Found.*Release", errors):
        return PackError(f"cannot {what}: {reason}", hint="is that a Debian suite, such as bookworm?")
    if "No packages found" in errors or "Unable to locate package" in errors:
        return PackError(f"cannot {what}: {reason}", hint="look it up on packages.debian.org")
    if _NETWORK.search(errors):
        return PackError(
            f"cannot {what}: Debian's archive cannot be reached ({reason})",
            hint="check the network, or give boot.kernel a path",
        )
    return PackError(f"cannot {what}: {reason}")


def _start(
    command: list[str], environment: Mapping[str, str], out: object, err: object, cwd: Path
) -> subprocess.Popen[bytes]:
    if shutil.which(command[0]) is None:
        raise PackError(
            f"{command[0]} is not here, and Debian's packages are fetched with it",
            hint="give boot.kernel the path of a kernel, or pack on Debian or Ubuntu",
        )
    try:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd
        )
    except OSError as error:
        raise PackError(f"{command[0]} cannot be started: {error.strerror}") from error


def _host_acquire() -> list[str]:
    """The host's `Acquire` settings as lines of apt.conf, without which indexes it wants."""
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    lines = dump.stdout.splitlines(keepends=True)
    return [line for line in lines if line.startswith("Acquire::") and "::IndexTargets" not in line]


def _quote(value: str) -> str:
    if '"' in value or "\n" in value:
        raise PackError(f"apt cannot use the folder {value!r}", hint="set XDG_CACHE_HOME to another one")
    return f'"{value}"'


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # renamed meanwhile
    return total
