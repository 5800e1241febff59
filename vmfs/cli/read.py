"""`vmfs ls` and `vmfs cat`: read a volume without mounting it, ESXi's own volumes too."""

import sys
import time
from dataclasses import dataclass
from typing import BinaryIO, Final

import click

from vmfs.check import content
from vmfs.check.content import printable
from vmfs.check.reader import Node, Reader
from vmfs.cli.common import run
from vmfs.cli.lun_path import LunPath, LunPathType, opened
from vmfs.errors import CorruptRecord, IsADirectory, NotSupported
from vmfs.ids import FdAddress
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.file_desc import FileType
from vmfs.units import MIB

CHUNK: Final = 4 * MIB
"""Bytes that are held in memory at once."""

_TYPE_LETTERS: Final = {
    FileType.DIRECTORY: "d",
    FileType.FILE: "-",
    FileType.SYMLINK: "l",
    FileType.SYSTEM: "s",
    FileType.RDM: "r",
    FileType.NONE: "?",
}
_DOTS: Final = (b".", b"..")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How `ls` shows what it finds."""

    is_long: bool
    shows_hidden: bool
    is_recursive: bool


@click.command(name="ls")
@click.argument("source", type=LunPathType(), metavar="LUN:/PATH")
@click.option("-l", "--long", "is_long", is_flag=True, help="Mode, links, owner, size and time.")
@click.option("-a", "--all", "shows_hidden", is_flag=True, help="Names that begin with a dot too.")
@click.option("-R", "--recursive", "is_recursive", is_flag=True, help="Sub-directories too.")
@click.pass_context
def ls(
    ctx: click.Context, *, source: LunPath, is_long: bool, shows_hidden: bool, is_recursive: bool
) -> None:
    """List a directory of a volume that need not be mounted.

    Reads what is on the LUN now, with the journals of crashed hosts applied in memory. A damaged
    entry is shown as such, and makes the exit status 1.
    """
    listing = Listing(is_long=is_long, shows_hidden=shows_hidden, is_recursive=is_recursive)
    ctx.exit(0 if run(_ls, source, listing) else 1)


@click.command()
@click.argument("source", type=LunPathType(), metavar="LUN:/PATH")
def cat(*, source: LunPath) -> None:
    """Write a file of a volume that need not be mounted to standard output."""
    run(_cat, source)


async def _ls(source: LunPath, listing: Listing) -> bool:
    async with opened(source.lun) as volume:
        reader = volume.reader
        node = await content.resolve(reader, source.path, follow=True)
        if not node.is_directory:
            click.echo(await _line(reader, source.path.rpartition(b"/")[2], node, listing))
            return True
        return await _list_directory(reader, node, source.path, listing, seen=set())


async def _list_directory(
    reader: Reader, node: Node, path: bytes, listing: Listing, *, seen: set[FdAddress]
) -> bool:
    """List one directory, and those below it; False when something was damaged."""
    todo, is_whole = [(path.rstrip(b"/") or b"/", node)], True
    while todo:
        path, node = todo.pop()
        if listing.is_recursive:
            click.echo(f"{printable(path)}:")
        try:
            entries = await content.entries(reader, node)
        except CorruptRecord as error:
            click.echo(f"{printable(path)}: {error}", err=True)
            is_whole = False
            continue
        below = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(b".") and not listing.shows_hidden:
                continue
            child = await _show(reader, entry, listing)
            is_whole = is_whole and child is not None
            if child is None or entry.name in _DOTS or not child.is_directory:
                continue
            if listing.is_recursive and child.address not in seen:
                seen.add(child.address)  # damaged directories can hold each other
                below.append((path.rstrip(b"/") + b"/" + entry.name, child))
        if listing.is_recursive and (todo or below):
            click.echo("")
        todo += reversed(below)
    return is_whole


async def _show(reader: Reader, entry: DirEntry, listing: Listing) -> Node | None:
    try:
        node = await reader.node(entry.address)
        content.require_same_file(entry, node)
        click.echo(await _line(reader, entry.name, node, listing))
    except CorruptRecord as error:
        click.echo(f"{printable(entry.name)}: {error}", err=True)
        return None
    return node


async def _line(reader: Reader, name: bytes, node: Node, listing: Listing) -> str:
    shown = printable(name)
    if not listing.is_long:
        return shown
    desc = node.desc
    letter = "d" if node.is_directory else _TYPE_LETTERS[desc.type]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(desc.mtime))
    if desc.type is FileType.SYMLINK:
        shown += f" -> {printable(await content.link_target(reader, node))}"
    return (
        f"{letter}{mode_text(desc.mode)} {desc.link_count:>3} {desc.uid:>5} {desc.gid:>5} "
        f"{desc.length:>15} {when} {shown}"
    )


def mode_text(mode: int) -> str:
    """Permission bits as ls(1) shows them: `rwxr-xr-t`."""
    letters = [sign if mode & (1 << (8 - index)) else "-" for index, sign in enumerate("rwxrwxrwx")]
    for bit, index, lower, upper in (
        (0o4000, 2, "s", "S"),
        (0o2000, 5, "s", "S"),
        (0o1000, 8, "t", "T"),
    ):
        if mode & bit:
            letters[index] = lower if letters[index] == "x" else upper
    return "".join(letters)


async def _cat(source: LunPath) -> None:
    async with opened(source.lun) as volume:
        node = await content.resolve(volume.reader, source.path, follow=True)
        require_readable(source.path, node)
        await write_out(volume.reader, node, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def require_readable(path: bytes, node: Node) -> None:
    """Refuse what has no bytes of its own.

    Raises:
        IsADirectory: it holds names.
        NotSupported: it stands for a SCSI disk, whose bytes are elsewhere.
        CorruptRecord: its length is beyond what its block list can hold.
    """
    if node.is_directory:
        raise IsADirectory(f"{printable(path)} is a directory")
    if node.desc.type is FileType.RDM:
        raise NotSupported(f"{printable(path)} is a raw device mapping: its data are on that disk")
    content.require_within_reach(node)


async def write_out(reader: Reader, node: Node, target: BinaryIO) -> None:
    """Write all of a file's bytes, holes as zeroes."""
    offset = 0
    while piece := await content.read(reader, node, offset, CHUNK):
        target.write(piece)
        offset += len(piece)
