"""A real Linux guest under qemu (TCG), whose root disk is a `createType="vmfs"` VMDK.

The kernel is Debian's cloud kernel, fetched once into a cache directory outside the checkout. ext4
and the serial console are built into it, and its virtio modules come in a small initramfs. (NVMe is
built in as well, but the NVMe controller of qemu 7.2 loses a doorbell about once in a hundred boots
under load: the guest then waits for its disk for ever, though no request of qemu is open.) The root
disk is made without a mount: `mke2fs -d` of a tree with a static busybox in it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

BOOT_SECONDS_MAX = 240
"""A boot under TCG takes 3 to 15 s on two idle cores; loaded machines are ten times slower."""

DATA_MIB = 64

INIT = f"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
if [ -e /data.sum ]; then
    if sha256sum -c -s /data.sum; then echo GUEST-VERIFIED; else echo GUEST-CORRUPT; fi
else
    dd if=/dev/urandom of=/data bs=1M count={DATA_MIB} 2>/dev/null
    sha256sum /data > /data.sum
    sync
    echo GUEST-WRITTEN
fi
mount -o remount,ro /
echo GUEST-DONE
reboot -f
"""

SYNCED_INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /items
if [ -e /items/1 ]; then
    for item in /items/*; do
        set -- $(sha256sum $item)
        echo GUEST-HAS ${item#/items/} $1
    done
    mount -o remount,ro /
    echo GUEST-DONE
    reboot -f
fi
n=0
while true; do
    n=$((n + 1))
    dd if=/dev/urandom of=/items/.new bs=1k count=$((n % 37 * 8 + 1)) 2>/dev/null
    set -- $(sha256sum /items/.new)
    mv /items/.new /items/$n
    sync
    echo GUEST-SYNCED $n $1
done
"""
"""Writes one item after the other for ever, and says which have been synced; started again, it says
which are there."""

MODULES = (
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
)
"""What the cloud kernel needs to see its disk, each after those that it uses."""

FIRST_INIT = f"""#!/bin/sh
for module in {" ".join(Path(module).name for module in MODULES)}; do insmod /$module; done
mount -t devtmpfs dev /dev
mount -t ext4 /dev/vda /root
exec switch_root /root /sbin/init
"""
"""The first process, from the initramfs; the disk's own is the second."""

DESCRIPTOR = """# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW {sectors} VMFS "{flat}"

# The Disk Data Base
#DDB
ddb.adapterType = "lsilogic"
ddb.virtualHWVersion = "13"
"""


def cache_dir() -> Path:
    """Where fetched material is kept between runs, outside the checkout."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vmfs-tests"
    root.mkdir(parents=True, exist_ok=True)
    return root


@dataclass(frozen=True, slots=True)
class Kernel:
    """What qemu boots: the kernel, and the initramfs with the modules for its disk."""

    image: Path
    initramfs: Path


def kernel() -> Kernel:
    """Debian's cloud kernel, fetched with apt when the cache has none.

    Raises:
        FileNotFoundError: the package archive cannot be reached (the caller skips, saying so).
    """
    target = cache_dir() / "cloud-kernel"
    if not target.exists():
        work = cache_dir() / "cloud-kernel.tmp"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            tree = _fetch_kernel(work)
            made = work / "made"
            made.mkdir()
            shutil.move(next((tree / "boot").glob("vmlinuz-*")), made / "vmlinuz")
            modules = next((tree / "lib/modules").iterdir()) / "kernel"
            _make_initramfs(work / "initramfs", modules, made / "initramfs")
            made.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Kernel(target / "vmlinuz", target / "initramfs")


def _fetch_kernel(work: Path) -> Path:
    """Fetch the package and unpack it; where."""
    _run(work, "apt-get", "update", "-qq")
    shown = _run(work, "apt-cache", "show", "linux-image-cloud-amd64")
    found = re.search(r"Depends:.*?(linux-image-\S+-cloud-amd64)", shown.stdout)
    if found is None:
        raise FileNotFoundError("no linux-image-cloud-amd64 in the package lists")
    fetched = _run(work, "apt-get", "download", found[1])
    packages = list(work.glob("*.deb"))
    if not packages:
        raise FileNotFoundError(f"apt-get download {found[1]}: {fetched.stderr.strip()}")
    subprocess.run(["dpkg", "-x", packages[0], work / "tree"], check=True, timeout=300)
    return work / "tree"


def _make_initramfs(root: Path, modules: Path, target: Path) -> None:
    _put_busybox(root, ("sh", "insmod", "mount", "switch_root"), FIRST_INIT, at="init")
    for name in ("dev", "root"):
        (root / name).mkdir()
    for module in MODULES:
        shutil.copy(modules / module, root)
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    with target.open("wb") as archive:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            cwd=root,
            input=names.encode(),
            stdout=archive,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


def _put_busybox(root: Path, applets: Sequence[str], init: str, *, at: str) -> None:
    """Make `root`, with a shell and the script that is to be started."""
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in applets:
        (root / "bin" / applet).symlink_to("busybox")
    script = root / at
    script.parent.mkdir(exist_ok=True)
    script.write_text(init)
    script.chmod(0o755)


def _run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=directory, capture_output=True, text=True, timeout=300, check=False
    )


def root_disk_or_skip(directory: Path, *, init: str = INIT) -> Path:
    """A root disk in `directory`, for a test that is skipped where there is no kernel to boot."""
    try:
        kernel()
    except FileNotFoundError as error:
        pytest.skip(f"no kernel to boot: {error}")
    disk = directory / "root.raw"
    make_root_disk(directory, disk, init=init)
    return disk


def make_root_disk(directory: Path, target: Path, *, size_mib: int = 512, init: str = INIT) -> None:
    """Write an ext4 root filesystem to `target`.

    Args:
        directory: scratch space.
        target: the raw disk.
        size_mib: its size.
        init: the script that is the guest's first process.
    """
    root = directory / "root"
    applets = ("sh", "mount", "dd", "sha256sum", "sync", "echo", "reboot", "cat", "mkdir", "mv")
    _put_busybox(root, applets, init, at="sbin/init")
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
    with target.open("wb") as disk:
        disk.truncate(size_mib << 20)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, target], check=True, timeout=120
    )


def make_vmdk(disk: Path, vmdk: Path) -> None:
    """Put the raw `disk` on a datastore as `X.vmdk` + `X-flat.vmdk`, the way ESXi lays it out."""
    flat = vmdk.with_name(f"{vmdk.stem}-flat.vmdk")
    subprocess.run(["cp", "--sparse=always", disk, flat], check=True, timeout=300)
    sectors = flat.stat().st_size // 512
    vmdk.write_text(DESCRIPTOR.format(sectors=sectors, flat=flat.name))


def command(vmdk: Path) -> list[str]:
    """The qemu command that boots `vmdk` with its console on stdout."""
    booted = kernel()
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"),
        *("-m", "256M", "-machine", "pc,vmport=off", "-display", "none", "-vga", "none"),
        *("-nodefaults", "-no-user-config", "-serial", "stdio", "-no-reboot", "-nic", "none"),
        *("-kernel", str(booted.image), "-initrd", str(booted.initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *("-drive", f"if=none,id=sys,file={vmdk},format=vmdk,cache=none,aio=threads"),
        *("-device", "virtio-blk-pci,drive=sys"),
    ]


def boot(vmdk: Path) -> str:
    """Boot once, wait for the guest to end, and return what it printed."""
    done = subprocess.run(
        command(vmdk),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=BOOT_SECONDS_MAX,
        check=False,
    )
    return done.stdout + done.stderr
