"""A real Linux guest under qemu (TCG), whose root disk is a `createType="vmfs"` VMDK.

The kernel is Debian's cloud kernel (nvme, ext4 and the serial console are built in, so no
initramfs); it is fetched once into a cache directory outside the checkout. The root disk is made
without a mount: `mke2fs -d` of a tree with a static busybox in it.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

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


def kernel() -> Path:
    """The vmlinuz of Debian's cloud kernel, fetched with apt when the cache has none.

    Raises:
        FileNotFoundError: the package archive cannot be reached (the caller skips, saying so).
    """
    target = cache_dir() / "vmlinuz-cloud"
    if target.exists():
        return target
    work = cache_dir() / "kernel.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
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
        shutil.move(next((work / "tree/boot").glob("vmlinuz-*")), target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=directory, capture_output=True, text=True, timeout=300, check=False
    )


def make_root_disk(directory: Path, target: Path, *, size_mib: int = 512, init: str = INIT) -> None:
    """Write an ext4 root filesystem to `target`.

    Args:
        directory: scratch space.
        target: the raw disk.
        size_mib: its size.
        init: the script that is the guest's first process.
    """
    root = directory / "root"
    for name in ("bin", "sbin", "dev", "proc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in (
        "sh",
        "mount",
        "dd",
        "sha256sum",
        "sync",
        "echo",
        "reboot",
        "cat",
        "mkdir",
        "mv",
    ):
        (root / "bin" / applet).symlink_to("busybox")
    script = root / "sbin/init"
    script.write_text(init)
    script.chmod(0o755)
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
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"),
        *("-m", "256M", "-machine", "pc,vmport=off", "-display", "none", "-vga", "none"),
        *("-nodefaults", "-no-user-config", "-serial", "stdio", "-no-reboot", "-nic", "none"),
        *("-kernel", str(kernel())),
        *("-append", "console=ttyS0 root=/dev/nvme0n1 rw quiet panic=-1 init=/sbin/init"),
        *("-drive", f"if=none,id=sys,file={vmdk},format=vmdk,cache=none,aio=threads"),
        *("-device", "nvme,drive=sys,serial=s"),
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
