# SPDX-License-Identifier: MIT
"""`imgvm doctor`: what this host offers."""

from __future__ import annotations

import platform
import shutil

from imgvm.cli.options import AsJson
from imgvm.errors import STATUS_FINDINGS, ImgvmError

# Programs that pack calls, and what for.
TOOLS = {"apt-get": "kernels from Debian's archive", "dpkg-deb": "unpacking Debian packages"}


def command(as_json: AsJson = False) -> int:
    """Say which engines work here, and what packing will miss. Status 1 when nothing can run."""
    import json

    from imgvm.vmm import engine

    rows = [_row("host", True, f"{platform.machine()}, Linux {platform.release()}")]
    host = engine.inspect_host()
    rows.append(_row("hardware", bool(host.hardware), host.hardware or "no vmx or svm in /proc/cpuinfo"))
    reason = "; ".join(filter(None, (host.obstacle, host.hint))) or "/dev/kvm opens"
    rows.append(_row("kvm", not host.obstacle, reason))
    try:
        engine.probe(engine.INTERP)
        rows.append(_row("interp", True, "imgvm's software processor"))
        rows.append(_row("auto", True, str(engine.choose("auto", lambda: host))))
        status = 0
    except ImgvmError as error:
        rows.append(_row("interp", False, str(error)))
        status = STATUS_FINDINGS
    for tool, purpose in TOOLS.items():
        where = shutil.which(tool)
        rows.append(_row(tool, where is not None, f"{where or 'missing'}: {purpose}"))
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{'yes' if row['ok'] else 'no ':3}  {row['what']:9} {row['detail']}")
    return status


def _row(what: str, ok: bool, detail: str) -> dict[str, str | bool]:
    return {"what": what, "ok": ok, "detail": detail}
