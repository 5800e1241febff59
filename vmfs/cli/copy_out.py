"""`vmfs cp`: copy files off a volume that need not be mounted. Holes stay holes.

A file is written beside its target under a temporary name, synced, and renamed: what stands under
the name that was asked for is either whole or was there before. What cannot be copied is said on
stderr and makes the exit status 1; the rest is copied all the same.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vmfs.check import content
from vmfs.check.content import BlockList, Extent, ExtentKind, printable
from vmfs.check.reader import Node, Reader
from vmfs.cli.common import run
from vmfs.cli.lun_path import LunPath, LunPathType, opened
from vmfs.cli.read import CHUNK, require_readable
from vmfs.errors import (
    DeviceError,
    Exists,
    FileTooBig,
    IsADirectory,
    NotADirectory,
    NotPermitted,
    VmfsError,
)
from vmfs.ids import FdAddress
from vmfs.ondisk.file_desc import FileType, Zla
from vmfs.units import KIB

SPARSE_UNIT: Final = 64 * KIB
"""With --sparse, stretches of zeroes of this size become holes."""

_PART_NAME_MAX: Final = 60
"""Signs of the target's name that its temporary name repeats: four bytes each at most."""

_DOTS: Final = (b".", b"..")
_PERMISSIONS: Final = 0o777

Advance = Callable[[int], None]
"""Called with the bytes of a file that have been dealt with, holes included."""

Show = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with the name and size of a file that is about to be copied."""


@click.command(name="cp")
@click.argument("source", type=LunPathType(), metavar="LUN:/PATH")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("-r", "--recursive", "is_recursive", is_flag=True, help="Copy directories.")
@click.option(
    "--sparse",
    "makes_sparse",
    is_flag=True,
    help="Make holes of data that are zero, too (holes of the source are always kept).",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
@click.pass_context
def cp(  # noqa: PLR0913 - one parameter for each option
    ctx: click.Context,
    *,
    source: LunPath,
    target: Path,
    is_recursive: bool,
    makes_sparse: bool,
    force: bool,
) -> None:
    """Copy a file or directory from a volume that need not be mounted to TARGET.

    TARGET may be a directory. Permission bits and modification times are kept, symbolic links are
    copied as links. Of a directory, the volume's own system files are not copied, and raw device
    mappings are left out with a message.
    """
    task = CopyTask(is_recursive=is_recursive, makes_sparse=makes_sparse, overwrites=force)
    run(task.run, source, target)
    ctx.exit(0 if task.is_whole else 1)


@dataclass(slots=True, kw_only=True)
class CopyTask:
    """One run of `vmfs cp`."""

    is_recursive: bool
    makes_sparse: bool
    overwrites: bool
    is_whole: bool = True
    """False once something had to be left out."""
    seen: set[FdAddress] = field(default_factory=set)

    async def run(self, source: LunPath, target: Path) -> None:
        """Copy it all.

        Raises:
            VmfsError: the source does not exist, the target must not be written, or nothing can.
        """
        async with opened(source.lun) as volume:
            node = await content.resolve(volume.reader, source.path, follow=True)
            if node.is_directory and not self.is_recursive:
                raise IsADirectory(f"{printable(source.path)} is a directory; add -r")
            target = _final_target(source.path, target)
            with _progress_bar() as show:
                if node.is_directory:
                    await self._copy_directory(volume.reader, node, target, show)
                else:
                    await self._copy_file(volume.reader, node, source.path, target, show)

    async def _copy_directory(self, reader: Reader, node: Node, target: Path, show: Show) -> None:
        todo = [(node, target)]
        while todo:
            node, target = todo.pop()
            _make_directory(target)
            try:
                entries = await content.entries(reader, node)
            except VmfsError as error:
                self._leave_out(target, error)
                continue
            for entry in entries:
                if entry.name in _DOTS or entry.type is FileType.SYSTEM:
                    continue
                path = target / os.fsdecode(entry.name)
                try:
                    child = await reader.node(entry.address)
                    content.require_same_file(entry, child)
                    if not child.is_directory:
                        await self._copy_file(reader, child, entry.name, path, show)
                    elif child.address not in self.seen:
                        self.seen.add(child.address)  # damaged directories can hold each other
                        todo.append((child, path))
                except VmfsError as error:
                    self._leave_out(path, error)

    async def _copy_file(
        self, reader: Reader, node: Node, source: bytes, target: Path, show: Show
    ) -> None:
        _require_free(target, overwrites=self.overwrites)
        part = target.with_name(f".{target.name[:_PART_NAME_MAX]}.vmfs-part")
        try:
            if node.desc.type is FileType.SYMLINK:
                part.unlink(missing_ok=True)
                part.symlink_to(os.fsdecode(await content.link_target(reader, node)))
            else:
                require_readable(source, node)
                with show(target.name, node.desc.length) as advance:
                    await self._write_file(reader, node, part, advance)
            part.replace(target)
        except OSError as error:
            raise DeviceError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)

    async def _write_file(self, reader: Reader, node: Node, part: Path, advance: Advance) -> None:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.ftruncate(fd, node.desc.length)
            except OSError as error:
                raise FileTooBig(f"{part.parent} cannot hold it: {error.strerror}") from error
            await self._write_contents(reader, node, fd, advance)
            os.fchmod(fd, node.desc.mode & _PERMISSIONS)
            os.utime(fd, (node.desc.mtime, node.desc.mtime))
            os.fsync(fd)
        finally:
            os.close(fd)

    async def _write_contents(self, reader: Reader, node: Node, fd: int, advance: Advance) -> None:
        if node.desc.zla == Zla.RESIDENT:
            self._write(fd, await content.read(reader, node, 0, node.desc.length), 0)
            return
        block_list = BlockList(reader, node)
        page_size = block_list.page_blocks * node.desc.block_size
        for page in range(-(-node.desc.length // page_size)):
            for extent in await block_list.extents(page):
                if extent.kind is ExtentKind.DATA:
                    await self._write_extent(reader, extent, fd)
                advance(extent.length)

    async def _write_extent(self, reader: Reader, extent: Extent, fd: int) -> None:
        for at in range(0, extent.length, CHUNK):
            size = min(CHUNK, extent.length - at)
            self._write(fd, await reader.read(extent.lv_offset + at, size), extent.offset + at)

    def _write(self, fd: int, data: bytes, offset: int) -> None:
        step = SPARSE_UNIT if self.makes_sparse else CHUNK
        for at in range(0, len(data), step):
            piece = memoryview(data)[at : at + step]
            if self.makes_sparse and not np.frombuffer(piece, dtype=np.uint8).any():
                continue
            written = 0
            while written < len(piece):
                written += os.pwrite(fd, piece[written:], offset + at + written)

    def _leave_out(self, path: Path, error: VmfsError) -> None:
        self.is_whole = False
        click.echo(f"{printable(os.fsencode(path))}: left out: {error}", err=True)


def _final_target(source: bytes, target: Path) -> Path:
    """Into a directory that exists a file goes under its own name, as cp(1) has it."""
    name = source.rstrip(b"/").rpartition(b"/")[2]
    return target / os.fsdecode(name) if name and target.is_dir() else target


def _require_free(target: Path, *, overwrites: bool) -> None:
    if not overwrites and os.path.lexists(target):
        raise Exists(f"{target} exists; --force overwrites it")
    if target.is_dir() and not target.is_symlink():
        raise IsADirectory(f"{target} is a directory")
    # A rename would put a file in the place of a device node: as root, in that of /dev/null.
    if target.exists() and not target.is_file():
        raise NotPermitted(f"{target} is not a regular file; not even --force replaces it")


def _make_directory(target: Path) -> None:
    try:
        target.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectory(f"{target} exists, and is not a directory") from error
    except OSError as error:
        raise DeviceError(f"cannot make {target}: {error.strerror}") from error


@contextmanager
def _progress_bar() -> Iterator[Show]:
    """Show progress on a terminal, and nothing anywhere else."""
    if not sys.stderr.isatty():
        yield _show_nothing
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as bar:

        @contextmanager
        def show(name: str, size: int) -> Iterator[Advance]:
            task = bar.add_task(printable(os.fsencode(name)), total=size)
            yield lambda done: bar.advance(task, done)
            bar.remove_task(task)

        yield show


@contextmanager
def _show_nothing(_name: str, _size: int) -> Iterator[Advance]:
    yield lambda _done: None
