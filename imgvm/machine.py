# SPDX-License-Identifier: MIT
"""The machine as data: frozen records, and the plain document (the YAML's shape) they come from.

`from_document` trusts the document's types, because imgvm.config has checked it against the schema; what a
schema cannot say (units, sums) raises ValueError there, before. `to_document` writes every value out, so its
JSON is the resolved config that an image carries, and is itself a valid config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from imgvm import units
from imgvm.record import NOTHING, Record

Document = dict[str, Any]

DEFAULT_DISTRO = "debian:bookworm"
DEFAULT_PACKAGE = "linux-image-cloud-amd64"
ROOT_DISK = "root"
BOOT_ORDER = ("disk", "cdrom")


class Cpu(Record):
    """`machine.cpu`: which features each processor has."""

    model: str = "portable"  # portable | x86-64 | x86-64-v2 | x86-64-v3 | host
    features: tuple[str, ...] = ()  # +name and -name of CPUID features
    vendor: str = "auto"  # auto | intel | amd


class Firmware(Record):
    """`machine.firmware`: auto is the built-in BIOS where there is no kernel to load."""

    kind: str = "auto"  # auto | none | bios
    path: str | None = None  # another BIOS, relative to the config's folder

    @property
    def is_asked_for(self) -> bool:
        return self.path is not None or self.kind == "bios"


class Smbios(Record):
    """`machine.smbios`; "": the default, or nothing."""

    manufacturer: str = ""
    product: str = ""
    version: str = ""
    serial: str = ""
    sku: str = ""
    family: str = ""
    asset_tag: str = ""
    oem_strings: tuple[str, ...] = ()


class Hardware(Record):
    """`machine:` in the config."""

    cpus: int = 1
    memory_bytes: int = 512 * units.MIB
    accel: str = "auto"  # auto | kvm | jit | interp
    entropy: bool = True  # a virtio-rng device
    cpu: Cpu = Cpu()
    firmware: Firmware = Firmware()
    uuid: str = ""
    smbios: Smbios = Smbios()


class Kernel(Record):
    """Where the kernel comes from: exactly one of path, bundled, from_rootfs, and (distro with package)."""

    path: str | None = None  # relative to the config's folder
    distro: str | None = None  # debian:<suite>
    package: str | None = None
    bundled: bool = False  # imgvm's own greeting guest
    from_rootfs: bool = False  # the newest of the root file system's /boot
    sha256: str | None = None  # of the file or package


class File(Record):
    """A file of the automatic initramfs or the root file system: exactly one of source, content and link."""

    path: str  # absolute, in the guest
    source: str | None = None  # on the packing host, relative to the config's folder
    content: str | None = None
    link: str | None = None  # symbolic link's target
    mode: int | None = None  # permission bits; None: those of the source, else 0644


class Boot(Record):
    kernel: Kernel
    initrd: tuple[str, ...] | None = ()  # (): automatic; None: none; else files to be joined
    cmdline: str = ""
    modules: tuple[str, ...] = ()  # linux: module names; multiboot: `path arguments...`
    protocol: str = "auto"  # auto | linux | multiboot
    files: tuple[File, ...] = ()

    @property
    def initrd_is_auto(self) -> bool:
        return self.initrd == ()


class Rootfs(Record):
    """The root file system: exactly one of dir, tar, oci and registry."""

    dir: str | None = None  # paths are relative to the config's folder
    tar: tuple[str, ...] = ()
    oci: str | None = None  # a layout or an archive
    registry: str | None = None  # host/name:tag
    format: str = "ext4"  # ext4 | erofs | squashfs | initramfs
    compression: str = "none"  # of an erofs: none | lz4
    size_bytes: int | None = None  # None: what the files need, and free_bytes
    free_bytes: int = 64 * units.MIB
    partition_table: str = "none"  # none | gpt | mbr
    bootloader: str = "none"  # none | grub
    label: str = "root"
    owner: str = "root"  # of a folder's files: root | keep
    exclude: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    read_only: bool = False
    persist: str = "image"  # as Disk.persist

    @property
    def is_disk(self) -> bool:
        return self.format != "initramfs"

    @property
    def is_read_only(self) -> bool:
        return self.read_only or self.format in ("erofs", "squashfs")

    @property
    def device(self) -> str:
        """What Linux calls it: the first disk is it, or has it as its only partition."""
        return "/dev/vda" if self.partition_table == "none" else "/dev/vda1"


class Disk(Record):
    name: str
    source: str | None = None  # relative to the config's folder
    size_bytes: int | None = None  # None: that of the source; else at least that
    format: str = "auto"  # of the source: auto | raw | qcow2 | vmdk | vdi | vhdx
    sha256: str | None = None  # of the source's file
    filesystem: str = "none"  # of a disk without a source: none | ext4 | vfat | swap
    read_only: bool = False
    serial: str = ""  # the name, unless given
    cache: str = "writeback"  # writeback | writethrough | unsafe
    discard: bool = True  # what the guest discards gives space back
    embed: bool = True  # False: the source is a file of the host that runs it
    persist: str = "image"  # image | overlay | discard: what becomes of what the guest writes

    @property
    def is_kept(self) -> bool:
        """Whether what the guest writes is still there after the run."""
        return not self.read_only and self.persist != "discard"

    @property
    def is_overlaid(self) -> bool:
        """Whether it goes to the overlay beside the image."""
        return not self.read_only and self.persist == "overlay"


SEED_DISK = Disk("cidata", read_only=True, serial="cidata")


class CloudInit(Record):
    """The files of a NoCloud seed; "": the default."""

    user_data: str = ""
    meta_data: str = ""
    network_config: str = ""
    vendor_data: str = ""
    attach: str = "iso"  # iso | vfat | smbios
    seed_from: str = ""  # of attach: smbios

    @property
    def is_disk(self) -> bool:
        return self.attach != "smbios"

    def serial(self, hostname: str) -> str:
        """The machine's serial number that `attach: smbios` makes, as NoCloud reads it. A default would talk
        down the meta-data at `seed_from`."""
        if self.meta_data:
            facts = json.loads(self.meta_data)
        else:
            names = {"instance-id": f"iid-{hostname}", "local-hostname": hostname}
            facts = {} if self.seed_from else names
        if self.seed_from:
            facts["seedfrom"] = self.seed_from
        return ";".join(["ds=nocloud", *(f"{key}={value}" for key, value in facts.items())])


class Console(Record):
    device: str = "serial"  # serial | none
    escape: str = "ctrl-a"  # none | ctrl-<key>


class DebugExit(Record):
    port: int = 0xF4
    mapping: str = "raw"  # raw: status = value; qemu: status = (value << 1) | 1


class Exec(Record):
    command: tuple[str, ...]
    env: Mapping[str, str] = NOTHING
    cwd: str = "/"


class Exit(Record):
    timeout_ns: int | None = None
    on_reboot: str = "reset"  # reset | exit


class ImageOptions(Record):
    size_bytes: int | None = None  # the image's own disk is at least this large
    cluster_bytes: int = 64 * units.KIB
    compression: str = "none"  # none | zlib | zstd
    pristine: bool = False  # a snapshot of the disks as packed
    source_date_epoch: int | None = None  # unless the environment has SOURCE_DATE_EPOCH
    license: str = ""  # an SPDX expression


class Machine(Record):
    name: str = "machine"
    description: str = ""
    labels: Mapping[str, str] = NOTHING
    hardware: Hardware = Hardware()
    boot: Boot | None = None
    boot_order: tuple[str, ...] = BOOT_ORDER  # of the built-in BIOS: disk | cdrom
    rootfs: Rootfs | None = None
    disks: tuple[Disk, ...] = ()
    cloud_init: CloudInit | None = None
    console: Console = Console()
    debug_exit: DebugExit | None = None
    exec: Exec | None = None
    exit: Exit = Exit()
    image: ImageOptions = ImageOptions()
    minimum_imgvm: str = ""  # a version
    version: int = 1

    @property
    def loaded(self) -> Boot | None:
        """What is loaded into memory; None: the firmware boots from a disk."""
        return None if self.hardware.firmware.is_asked_for else self.boot

    @property
    def root_on_disk(self) -> Rootfs | None:
        """`rootfs`, unless that is memory."""
        return self.rootfs if self.rootfs is not None and self.rootfs.is_disk else None

    @property
    def seed_on_disk(self) -> CloudInit | None:
        """`cloud_init`, unless that is a serial number."""
        return self.cloud_init if self.cloud_init is not None and self.cloud_init.is_disk else None

    @property
    def smbios(self) -> Smbios:
        """What SMBIOS says: `machine.smbios`, and in its serial number what cloud-init is told there."""
        texts = self.hardware.smbios
        if self.cloud_init is None or self.cloud_init.is_disk:
            return texts
        return Smbios(**{**vars(texts), "serial": self.cloud_init.serial(self.name)})

    @property
    def own_disk(self) -> Disk | None:
        """The image's own: that of the root file system, else the first of `disks`."""
        if self.root_on_disk is not None:
            root = self.root_on_disk
            return Disk(ROOT_DISK, read_only=root.is_read_only, serial=ROOT_DISK, persist=root.persist)
        return self.disks[0] if self.disks else None

    @property
    def further_disks(self) -> tuple[Disk, ...]:
        """Those behind it: the others of `disks`, and the seed."""
        others = self.disks[1:] if self.root_on_disk is None else self.disks
        return (*others, *([SEED_DISK] if self.seed_on_disk is not None else []))

    @property
    def attached(self) -> tuple[Disk, ...]:
        """All that the guest has, in its order."""
        return (*([self.own_disk] if self.own_disk is not None else []), *self.further_disks)

    @property
    def kernel_cmdline(self) -> str:
        """`boot.cmdline`, and unless that says it, where the root file system and cloud-init's data are."""
        if self.boot is None or self.boot.protocol == "multiboot":
            return "" if self.boot is None else self.boot.cmdline
        words = self.boot.cmdline.split()
        further = []
        root = self.root_on_disk
        if root is not None:
            if not any(word.startswith("root=") for word in words):
                further.append(f"root={root.device}")
            if not {"ro", "rw"} & set(words):
                further.append("ro" if root.is_read_only else "rw")
        if self.seed_on_disk is not None and not any(word.startswith("ds=") for word in words):
            further.append("ds=nocloud")  # which spares it the search for other clouds
        return " ".join(filter(None, [self.boot.cmdline, *further]))


def from_document(doc: Document, default_name: str = "machine") -> Machine:
    """Builds the Machine of a document that the schema has accepted."""
    return Machine(
        name=doc.get("name", default_name),
        description=doc.get("description", ""),
        labels=dict(doc.get("labels", {})),
        hardware=_hardware(doc.get("machine", {})),
        boot=_boot(doc["boot"]) if "kernel" in doc.get("boot", {}) else None,
        boot_order=tuple(doc.get("boot", {}).get("order", BOOT_ORDER)),
        rootfs=_rootfs(doc["rootfs"]) if "rootfs" in doc else None,
        disks=tuple(_disk(disk) for disk in doc.get("disks", [])),
        cloud_init=_cloud_init(doc["cloud_init"]) if "cloud_init" in doc else None,
        console=Console(**doc.get("console", {})),
        debug_exit=_debug_exit(doc.get("devices", {}).get("debug_exit", False)),
        exec=_exec(doc["exec"]) if "exec" in doc else None,
        exit=_exit(doc.get("exit", {})),
        image=_image(doc.get("image", {})),
        minimum_imgvm=doc.get("minimum_imgvm", ""),
    )


def _size(doc: Document, key: str, default: int | None = None) -> int | None:
    return units.parse_size(doc[key]) if key in doc else default


def _hardware(doc: Document) -> Hardware:
    return Hardware(
        cpus=doc.get("cpus", 1),
        memory_bytes=_size(doc, "memory") or Hardware.memory_bytes,
        accel=doc.get("accel", "auto"),
        entropy=doc.get("entropy", True),
        cpu=_cpu(doc.get("cpu", {})),
        firmware=_firmware(doc.get("firmware", "auto")),
        uuid=doc.get("uuid", "").lower(),
        smbios=_smbios(doc.get("smbios", {})),
    )


def _smbios(doc: Document) -> Smbios:
    return Smbios(**{**doc, "oem_strings": tuple(doc.get("oem_strings", ()))})


def _firmware(value: str | Document) -> Firmware:
    return Firmware(value) if isinstance(value, str) else Firmware(path=value["path"])


def _cpu(doc: Document) -> Cpu:
    return Cpu(
        model=doc.get("model", Cpu.model),
        features=tuple(doc.get("features", ())),
        vendor=doc.get("vendor", Cpu.vendor),
    )


def _kernel(value: str | Document) -> Kernel:
    if isinstance(value, str):
        return Kernel(path=value)
    if "path" in value:
        return Kernel(path=value["path"], sha256=value.get("sha256"))
    if value.get("bundled"):
        return Kernel(bundled=True)
    if value.get("from_rootfs"):
        return Kernel(from_rootfs=True)
    return Kernel(
        distro=value.get("distro", DEFAULT_DISTRO),
        package=value.get("package", DEFAULT_PACKAGE),
        sha256=value.get("sha256"),
    )


def _file(doc: Document) -> File:
    mode = int(doc["mode"], 8) if "mode" in doc else None
    return File(doc["path"], doc.get("source"), doc.get("content"), doc.get("link"), mode)


def _boot(doc: Document) -> Boot:
    kernel = _kernel(doc["kernel"])
    takes_no_initrd = kernel.bundled or doc.get("protocol") == "multiboot"
    initrd = doc.get("initrd", "none" if takes_no_initrd else "auto")
    cmdline = doc.get("cmdline", "")
    return Boot(
        kernel=kernel,
        initrd=None if initrd == "none" else () if initrd == "auto" else _strings(initrd),
        cmdline=cmdline if isinstance(cmdline, str) else " ".join(cmdline),
        modules=tuple(doc.get("modules", [])),
        protocol=doc.get("protocol", "auto"),
        files=tuple(_file(file) for file in doc.get("files", [])),
    )


def _strings(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _rootfs(doc: Document) -> Rootfs:
    oci = doc.get("oci")
    return Rootfs(
        dir=doc.get("dir"),
        tar=_strings(doc.get("tar", [])),
        oci=oci if isinstance(oci, str) else None,
        registry=oci["registry"] if isinstance(oci, dict) else None,
        format=doc.get("format", Rootfs.format),
        compression=doc.get("compression", Rootfs.compression),
        size_bytes=None if doc.get("size") == "auto" else _size(doc, "size"),
        free_bytes=units.parse_size(doc["free"]) if "free" in doc else Rootfs.free_bytes,
        partition_table=doc.get("partition_table", Rootfs.partition_table),
        bootloader=doc.get("bootloader", Rootfs.bootloader),
        label=doc.get("label", Rootfs.label),
        owner=doc.get("owner", Rootfs.owner),
        exclude=tuple(doc.get("exclude", [])),
        files=tuple(_file(file) for file in doc.get("files", [])),
        read_only=doc.get("read_only", False),
        persist=doc.get("persist", Rootfs.persist),
    )


def _disk(doc: Document) -> Disk:
    return Disk(
        name=doc["name"],
        source=doc.get("source"),
        size_bytes=_size(doc, "size"),
        format=doc.get("format", "auto"),
        sha256=doc.get("sha256"),
        filesystem=doc.get("filesystem", Disk.filesystem),
        read_only=doc.get("read_only", False),
        serial=doc.get("serial") or doc["name"],
        cache=doc.get("cache", Disk.cache),
        discard=doc.get("discard", Disk.discard),
        embed=doc.get("embed", Disk.embed),
        persist=doc.get("persist", Disk.persist),
    )


def _cloud_init(doc: Document) -> CloudInit:
    def text(key: str, head: str = "") -> str:
        value = doc.get(key, "")
        if isinstance(value, str):
            return value
        return f"{head}{json.dumps(value, indent=1, ensure_ascii=False)}\n"  # what is JSON is YAML, too

    return CloudInit(
        user_data=text("user_data", "#cloud-config\n"),
        meta_data=text("meta_data"),
        network_config=text("network_config"),
        vendor_data=text("vendor_data", "#cloud-config\n"),
        attach=doc.get("attach", CloudInit.attach),
        seed_from=doc.get("seed_from", CloudInit.seed_from),
    )


def _debug_exit(value: bool | Document) -> DebugExit | None:
    if isinstance(value, bool):
        return DebugExit() if value else None
    return DebugExit(**value)


def _exec(doc: Document) -> Exec:
    command = doc["command"]
    env = {key: _env_text(value) for key, value in doc.get("env", {}).items()}
    shell = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
    return Exec(command=shell, env=env, cwd=doc.get("cwd", "/"))


def _env_text(value: str | int | bool) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _exit(doc: Document) -> Exit:
    timeout = doc.get("timeout", "none")
    return Exit(None if timeout == "none" else units.parse_duration(timeout), doc.get("on_reboot", "reset"))


def _image(doc: Document) -> ImageOptions:
    return ImageOptions(
        size_bytes=_size(doc, "size"),
        cluster_bytes=_size(doc, "cluster_size") or ImageOptions.cluster_bytes,
        compression=doc.get("compression", "none"),
        pristine=doc.get("pristine", False),
        source_date_epoch=doc.get("source_date_epoch"),
        license=doc.get("license", ""),
    )


def to_document(machine: Machine) -> Document:
    """The resolved document: defaults written out, keys in the schema's order."""
    doc: Document = {"version": machine.version, "name": machine.name}
    if machine.minimum_imgvm:
        doc["minimum_imgvm"] = machine.minimum_imgvm
    if machine.description:
        doc["description"] = machine.description
    if machine.labels:
        doc["labels"] = dict(machine.labels)
    hardware = machine.hardware
    doc["machine"] = {
        "cpus": hardware.cpus,
        "memory": units.format_size(hardware.memory_bytes),
        "accel": hardware.accel,
        "entropy": hardware.entropy,
        "cpu": {
            "model": hardware.cpu.model,
            "features": list(hardware.cpu.features),
            "vendor": hardware.cpu.vendor,
        },
        "firmware": _firmware_document(hardware.firmware),
        **({"uuid": hardware.uuid} if hardware.uuid else {}),
        "smbios": _smbios_document(hardware.smbios),
    }
    doc["boot"] = {} if machine.boot is None else _boot_document(machine.boot)
    if machine.boot is None or machine.boot_order != BOOT_ORDER:
        doc["boot"]["order"] = list(machine.boot_order)
    if machine.rootfs is not None:
        doc["rootfs"] = _rootfs_document(machine.rootfs)
    if machine.disks:
        doc["disks"] = [_disk_document(disk) for disk in machine.disks]
    if machine.cloud_init is not None:
        seed = machine.cloud_init
        doc["cloud_init"] = _without_none({
            "user_data": seed.user_data or None,
            "meta_data": seed.meta_data or None,
            "network_config": seed.network_config or None,
            "vendor_data": seed.vendor_data or None,
            "attach": seed.attach,
            "seed_from": seed.seed_from or None,
        })
    doc["console"] = {"device": machine.console.device, "escape": machine.console.escape}
    debug_exit = machine.debug_exit
    doc["devices"] = {
        "debug_exit": {"port": debug_exit.port, "mapping": debug_exit.mapping} if debug_exit else False
    }
    if machine.exec is not None:
        doc["exec"] = {
            "command": list(machine.exec.command), "env": dict(machine.exec.env), "cwd": machine.exec.cwd,
        }  # fmt: skip
    timeout_ns = machine.exit.timeout_ns
    doc["exit"] = {
        "timeout": "none" if timeout_ns is None else units.format_duration(timeout_ns),
        "on_reboot": machine.exit.on_reboot,
    }
    doc["image"] = _without_none({
        "size": None if machine.image.size_bytes is None else units.format_size(machine.image.size_bytes),
        "cluster_size": units.format_size(machine.image.cluster_bytes),
        "compression": machine.image.compression,
        "pristine": machine.image.pristine,
        "source_date_epoch": machine.image.source_date_epoch,
        "license": machine.image.license or None,
    })
    return doc


def _without_none(doc: Document) -> Document:
    return {key: value for key, value in doc.items() if value is not None}


def _smbios_document(smbios: Smbios) -> Document:
    texts = {key: value for key, value in vars(smbios).items() if value and key != "oem_strings"}
    return {**texts, "oem_strings": list(smbios.oem_strings)}


def _firmware_document(firmware: Firmware) -> str | Document:
    return firmware.kind if firmware.path is None else {"path": firmware.path}


def _boot_document(boot: Boot) -> Document:
    kernel = boot.kernel
    where: Document = {"bundled": True} if kernel.bundled else {}
    where.update({"from_rootfs": True} if kernel.from_rootfs else {})
    keys = ("path", "distro", "package", "sha256")
    where.update(_without_none({key: getattr(kernel, key) for key in keys}))
    none = boot.initrd is None or (boot.initrd_is_auto and boot.protocol == "multiboot")
    return {
        "kernel": where,
        "initrd": "none" if none else list(boot.initrd or ()) or "auto",
        "cmdline": boot.cmdline,
        "modules": list(boot.modules),
        "protocol": boot.protocol,
        "files": [_file_document(file) for file in boot.files],
    }


def _file_document(file: File) -> Document:
    mode = None if file.mode is None else f"0{file.mode:03o}"
    return _without_none(
        {"path": file.path, "source": file.source, "content": file.content, "link": file.link, "mode": mode}
    )


def _rootfs_document(rootfs: Rootfs) -> Document:
    on_disk = {
        "size": "auto" if rootfs.size_bytes is None else units.format_size(rootfs.size_bytes),
        "free": units.format_size(rootfs.free_bytes),
        "partition_table": rootfs.partition_table,
        "bootloader": rootfs.bootloader,
        "label": rootfs.label,
        "read_only": rootfs.read_only,
        "persist": rootfs.persist,
    }
    return _without_none({
        "dir": rootfs.dir,
        "tar": list(rootfs.tar) or None,
        "oci": rootfs.oci if rootfs.registry is None else {"registry": rootfs.registry},
        "format": rootfs.format,
        "compression": rootfs.compression if rootfs.format == "erofs" else None,
        **(on_disk if rootfs.is_disk else {}),
        "owner": rootfs.owner,
        "exclude": list(rootfs.exclude),
        "files": [_file_document(file) for file in rootfs.files],
    })


def _disk_document(disk: Disk) -> Document:
    return _without_none({
        "name": disk.name,
        "source": disk.source,
        "size": None if disk.size_bytes is None else units.format_size(disk.size_bytes),
        "format": disk.format,
        "sha256": disk.sha256,
        "filesystem": disk.filesystem,
        "read_only": disk.read_only,
        "serial": disk.serial,
        "cache": disk.cache,
        "discard": disk.discard,
        "embed": disk.embed,
        "persist": disk.persist,
    })
