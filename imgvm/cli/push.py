# SPDX-License-Identifier: MIT
"""`imgvm push`: an image into a registry."""

from __future__ import annotations

from imgvm.cli.options import Allow, ImageFile, PlainHttp, Reference


def command(image: ImageFile, ref: Reference, plain_http: PlainHttp = False, allow: Allow = None) -> int:
    """Push an image to an OCI registry, and print its name there with the digest."""
    from imgvm import launch
    from imgvm.exchange import oci

    print(oci.push(image, ref, plain_http=plain_http, allow=launch.parse_grants(allow)))
    return 0
