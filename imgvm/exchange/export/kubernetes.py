# SPDX-License-Identifier: MIT
"""Kubernetes: a VirtualMachine of KubeVirt, or a Job whose container runs imgvm.

Manifests are JSON, which kubectl takes as it takes YAML. The container image that they name is built with the
Containerfile beside them.
"""

from __future__ import annotations

import json
import re
from typing import Any

import imgvm
from imgvm.exchange.export.parts import Parts
from imgvm.launch import INITRD, KERNEL

QEMU_USER = 107  # whom KubeVirt runs QEMU as
DISK = "disk.qcow2"
OVERHEAD_MIB = 192  # imgvm itself, beside the guest's memory
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def write(parts: Parts, target: str) -> None:
    if target != "k8s-job":
        parts.note_further_disks()
    document = _job(parts) if target == "k8s-job" else _virtual_machine(parts)
    parts.text("job.json" if target == "k8s-job" else "vm.json", json.dumps(document, indent=2) + "\n")
    build = f"podman build -t {parts.ref} . && podman push {parts.ref}"
    parts.note(f"build and push the container image first: {build}")


def name_of(parts: Parts) -> str:
    """A DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", parts.machine.name).strip("-")[:63].rstrip("-") or "machine"


def _metadata(parts: Parts) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name_of(parts)}
    labels = {}
    for key, value in parts.machine.labels.items():
        if key and _LABEL.fullmatch(key) and _LABEL.fullmatch(value):
            labels[key] = value
        else:  # not what Kubernetes takes for a label
            metadata.setdefault("annotations", {})[f"imgvm.invalid/{_annotation(key)}"] = value
    if labels:
        metadata["labels"] = labels
    return metadata


def _annotation(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:63].rstrip("-") or "label"


def _virtual_machine(parts: Parts) -> dict[str, Any]:
    program = parts.program(multiboot=False)
    parts.qcow2_disk(DISK)
    lines = [
        "FROM scratch",
        f"COPY --chown={QEMU_USER}:{QEMU_USER} {DISK} /disk/",
        f"COPY --chown={QEMU_USER}:{QEMU_USER} {KERNEL}{f' {INITRD}' if program.initrd else ''} /boot/",
    ]
    parts.text("Containerfile", "\n".join(lines) + "\n")
    boot = {"image": parts.ref, "kernelPath": f"/boot/{KERNEL}"}
    if program.initrd is not None:
        boot["initrdPath"] = f"/boot/{INITRD}"
    machine = parts.machine
    devices: dict[str, Any] = {
        "disks": [{"name": "disk", "disk": {"bus": "virtio", "readonly": True}}]
        if machine.own_disk is not None and machine.own_disk.read_only
        else [{"name": "disk", "disk": {"bus": "virtio"}}],
        "autoattachSerialConsole": machine.console.device == "serial",
        "autoattachGraphicsDevice": False,
    }
    if machine.hardware.entropy:
        devices["rng"] = {}
    domain = {
        "cpu": {"cores": machine.hardware.cpus},
        "memory": {"guest": f"{parts.memory_mib}Mi"},
        "resources": {"requests": {"memory": f"{parts.memory_mib}Mi"}},
        "devices": devices,
        "firmware": {"kernelBoot": {"container": boot, "kernelArgs": parts.cmdline}},
    }
    if parts.status_port is not None:
        parts.note("KubeVirt does not hand out the status that the guest reports; --to k8s-job does")
    parts.note("a containerDisk forgets what the guest writes when the machine ends")
    volume = {"name": "disk", "containerDisk": {"image": parts.ref}}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": _metadata(parts),
        "spec": {
            "runStrategy": "Once",
            "template": {
                "metadata": {"labels": {"kubevirt.io/vm": name_of(parts)}},
                "spec": {"domain": domain, "volumes": [volume]},
            },
        },
    }


def _job(parts: Parts) -> dict[str, Any]:
    image = f"{name_of(parts)}.img"
    parts.qcow2_disk(image)
    lines = [
        "FROM docker.io/library/python:3.11",
        f"RUN pip install --no-cache-dir imgvm=={imgvm.__version__}",
        f"COPY {image} /image/",
        f'ENTRYPOINT ["imgvm", "run", "--ephemeral", "/image/{image}"]',
    ]
    parts.text("Containerfile", "\n".join(lines) + "\n")
    machine = parts.machine
    memory = f"{parts.memory_mib + OVERHEAD_MIB}Mi"
    container = {
        "name": "machine",
        "image": parts.ref,
        "resources": {
            "requests": {"cpu": str(machine.hardware.cpus), "memory": memory},
            "limits": {"memory": memory},
        },
    }
    spec: dict[str, Any] = {
        "backoffLimit": 0,  # the guest's status is the result, not a mishap
        "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
    }
    if parts.timeout_sec is not None:
        spec["activeDeadlineSeconds"] = parts.timeout_sec + 60  # after imgvm's own timeout, with its status
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(parts), "spec": spec}
