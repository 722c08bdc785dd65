# SPDX-License-Identifier: MIT
"""The seed of cloud-init's NoCloud data source: a file system labelled CIDATA with the files it looks for.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import hashlib

from imgvm.machine import CloudInit
from imgvm.pack import iso9660, vfat

LABEL = "CIDATA"


def files(seed: CloudInit, hostname: str) -> dict[str, bytes]:
    """user-data and meta-data must be there; the others may be."""
    found = {"user-data": seed.user_data or "#cloud-config\n{}\n"}
    if seed.network_config:
        found["network-config"] = seed.network_config
    if seed.vendor_data:
        found["vendor-data"] = seed.vendor_data
    meta_data = seed.meta_data
    if not meta_data:
        # Another instance, for whom all is done again, when anything of it changes.
        instance = hashlib.sha256("\0".join([hostname, *found.values()]).encode()).hexdigest()[:16]
        meta_data = f"instance-id: iid-{instance}\nlocal-hostname: {hostname}\n"
    found["meta-data"] = meta_data
    return {name: text.encode() for name, text in found.items()}


def image(seed: CloudInit, hostname: str, mtime_sec: int) -> bytes:
    write = vfat.image if seed.attach == "vfat" else iso9660.image
    return write(LABEL, files(seed, hostname), mtime_sec)
