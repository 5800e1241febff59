"""Every finding can be caused, and is found: one damage for each code on a sound volume."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.checked import assert_clean, describe
from tests.support.handmade import HandMade, build_handmade
from tests.support.records import HOST_A, HOST_B
from vmfs.check import CATALOGUE, Severity, check_device
from vmfs.device.memory import MemoryDevice
from vmfs.ids import SlotIndex
from vmfs.ondisk.address import FbAddress
from vmfs.ondisk.descriptor import DESCRIPTOR_OFFSET
from vmfs.ondisk.dirent import DirEntry
from vmfs.ondisk.disk_lock import DiskLock, Holder, LockType
from vmfs.ondisk.file_desc import (
    FBB_FD,
    FDC_FD,
    PB2_FD,
    PBC_FD,
    SBC_FD,
    VLJ_FD,
    FileType,
)
from vmfs.ondisk.heartbeat import Heartbeat, HostInfo, slot_offset
from vmfs.ondisk.journal_rec import (
    CommitSector,
    CommitState,
    JournalLayout,
    half_of,
    pack_body,
)
from vmfs.ondisk.lvm import HEADER_OFFSET, LV_START, VOLUME_TABLE
from vmfs.ondisk.orphan_rec import OrphanEntry, OrphanSector
from vmfs.ondisk.resource import ClusterMeta
from vmfs.units import MIB

Damage = Callable[[HandMade], Awaitable[None]]

HOST = HostInfo(name="esx-a", pid=4711, nonce=1, interval_ms=3000, lease_ms=16000)
DOCUMENT = Path(__file__).parents[2] / "docs" / "check.md"


# ---- tools


async def lock_by(volume: HandMade, offset: int, *, slot: int, generation: int) -> None:
    record = DiskLock.unpack(await volume.lv.read(offset, 512), address=offset)
    by = Holder(heartbeat_offset=slot_offset(slot), generation=generation, owner=HOST_A)
    await volume.patch(offset, record.taken_exclusive(by, 5).pack())


async def use_slot(volume: HandMade, slot: int, *, generation: int = 1) -> None:
    layout = journal_layout(volume, slot)
    record = Heartbeat(lv_offset=slot_offset(slot), generation=generation - 1).acquired(
        owner=HOST_A,
        stamp_us=1,
        journal_fb=FbAddress(block=layout.region_offset // MIB).pack(),
        journal_offset=layout.region_offset,
        host=HOST,
    )
    await volume.patch(slot_offset(slot), record.pack())


def journal_layout(volume: HandMade, slot: int) -> JournalLayout:
    size = volume.plan.geometry.limits.journal_size
    return JournalLayout(volume.plan.geometry.file(VLJ_FD).lv_offset(slot * size), size)


async def commit(
    volume: HandMade, slot: int, runs: list[tuple[int, bytes]], *, sequence: int = 1
) -> None:
    """Write a committed transaction into a journal, as a crash would leave it."""
    layout = journal_layout(volume, slot)
    at, body = layout.commit_offset(half_of(sequence)), pack_body(runs)
    record = CommitSector(
        state=CommitState.COMMITTED,
        slot=SlotIndex(slot),
        generation=1,
        sequence=sequence,
        lv_offset=at,
        run_count=len(runs),
        payload_size=sum(len(data) for _, data in runs),
    ).sealed(body)
    await volume.patch(layout.body_offset(half_of(sequence)), body)
    await volume.patch(at, record.pack())


async def note_orphan(volume: HandMade, entry: OrphanEntry) -> None:
    at = journal_layout(volume, 1).orphan_offset
    empty = OrphanSector.empty(slot=SlotIndex(1), lv_offset=at)
    sector = replace(empty, entries=(entry, *empty.entries[1:]))
    await volume.patch(at, sector.pack())


async def edit_meta(volume: HandMade, kind: int, cluster: int, **changes: object) -> None:
    at = volume.cluster_offset(kind, cluster) + 512  # type: ignore[arg-type]
    meta = ClusterMeta.unpack(await volume.lv.read(at, 512), address=at)
    await volume.patch(at, replace(meta, **changes).pack())  # type: ignore[arg-type]


async def edit_entry(volume: HandMade, path: str, index: int, **changes: object) -> None:
    entry = replace(volume.made[path].entries[index], **changes)  # type: ignore[arg-type]
    await volume.patch(volume.entry_offset(path, index), entry.pack())


async def set_free(volume: HandMade, kind: int, index: int, *, free: bool) -> None:
    """Change one bit of a bitmap, with the counts."""
    header = volume.plan.geometry.resource_header(kind)  # type: ignore[arg-type]
    cluster, resource = divmod(index, header.resources_per_cluster)
    at = volume.cluster_offset(kind, cluster) + 512  # type: ignore[arg-type]
    meta = ClusterMeta.unpack(await volume.lv.read(at, 512), address=at)
    bits = meta.free_bits | 1 << resource if free else meta.free_bits & ~(1 << resource)
    await volume.patch(at, meta.with_free_bits(bits).pack())


def fd_index(volume: HandMade, path: str) -> int:
    address = volume.made[path].address
    return (address >> 6 & 0xFFFF) * 200 + (address >> 22)


# ---- one damage for each code, and more where a finding has several causes


async def lvm_magic(volume: HandMade) -> None:
    await volume.lun.write(HEADER_OFFSET + 4, b"\x09")


async def lvm_volume_size(volume: HandMade) -> None:
    await volume.lun.write(HEADER_OFFSET + VOLUME_TABLE + 6, b"\x01")


async def descriptor_magic(volume: HandMade) -> None:
    await volume.patch(DESCRIPTOR_OFFSET, b"\x00")


async def descriptor_of_other_volume(volume: HandMade) -> None:
    await volume.patch(DESCRIPTOR_OFFSET + 0xB1, b"\xee")


async def descriptor_sub_block_size(volume: HandMade) -> None:
    await volume.patch(DESCRIPTOR_OFFSET + 0xD9, (16384).to_bytes(4, "little"))


async def parameters_checksum(volume: HandMade) -> None:
    await volume.patch(DESCRIPTOR_OFFSET + 0x190 + 20, b"\x77")


async def heartbeat_magic(volume: HandMade) -> None:
    await volume.patch(slot_offset(7), b"\x00")


async def heartbeat_elsewhere(volume: HandMade) -> None:
    await volume.patch(slot_offset(9), await volume.lv.read(slot_offset(8), 512))


async def slot_in_use(volume: HandMade) -> None:
    await use_slot(volume, 1)


async def fbb_descriptor_type(volume: HandMade) -> None:
    at = volume.plan.geometry.fd_offset(FBB_FD)
    await volume.patch(at + 512 + 12, b"\x03")


async def sbc_first_pointer(volume: HandMade) -> None:
    at = volume.plan.geometry.fd_offset(SBC_FD)
    await volume.patch(at + 1024, b"\x02")


async def pbc_header(volume: HandMade) -> None:
    at = volume.plan.geometry.file(PBC_FD).lv_offset(0)
    await volume.patch(at, b"\x00\x00\x00\x00")


async def cluster_number(volume: HandMade) -> None:
    at = volume.cluster_offset(FBB_FD, 1) + 512
    await volume.patch(at, b"\x05")


async def cluster_total(volume: HandMade) -> None:
    last = volume.plan.geometry.fbb.cluster_count - 1
    await edit_meta(volume, FBB_FD, last, total=57)


async def cluster_first_free_wild(volume: HandMade) -> None:
    await edit_meta(volume, SBC_FD, 3, first_free=63_000)


async def cluster_lock_magic(volume: HandMade) -> None:
    await volume.patch(volume.cluster_offset(SBC_FD, 2), b"\x09")


async def cluster_lock_of_other_kind(volume: HandMade) -> None:
    at = volume.cluster_offset(SBC_FD, 2)
    await volume.patch(at, DiskLock(type=LockType.FB_CLUSTER, lv_offset=at).pack())


async def cluster_free_count(volume: HandMade) -> None:
    await edit_meta(volume, PBC_FD, 5, free=3)


async def cluster_first_free(volume: HandMade) -> None:
    await edit_meta(volume, PBC_FD, 5, first_free=3)


async def fd_foreign_address(volume: HandMade) -> None:
    await volume.patch(volume.fd_offset("/sub") + 512, b"\x44")


async def fd_impossible_type(volume: HandMade) -> None:
    await volume.patch(volume.fd_offset("/sub") + 512 + 12, b"\x09")


async def fd_block_size(volume: HandMade) -> None:
    await volume.rewrite("/three", block_size=1 << 19, block_shift=19)


async def fd_lock(volume: HandMade) -> None:
    await volume.patch(volume.fd_offset("/three") + 4, b"\x01")


async def fd_without_links(volume: HandMade) -> None:
    await volume.rewrite("/dir/one", link_count=0)


async def fd_marked_free(volume: HandMade) -> None:
    await set_free(volume, FDC_FD, fd_index(volume, "/three"), free=True)


async def fd_too_long(volume: HandMade) -> None:
    await volume.rewrite("/three", length=257 * MIB)


async def fd_block_count(volume: HandMade) -> None:
    await volume.rewrite("/sparse", allocated_blocks=2)


async def fd_tbz_count(volume: HandMade) -> None:
    await volume.rewrite("/sparse", tbz_blocks=2)


async def pointer_of_wrong_kind(volume: HandMade) -> None:
    await volume.patch(volume.fd_offset("/three") + 1024, b"\x02")


async def pointer_past_the_volume(volume: HandMade) -> None:
    wild = FbAddress(block=1 << 20).pack().to_bytes(4, "little")
    await volume.patch(volume.fd_offset("/three") + 1024, wild)


async def pointer_block_with_noise(volume: HandMade) -> None:
    await volume.patch(volume.resource_offset(PBC_FD, 0) + 40, b"\xff\xff\xff\xff")


async def shorter_than_its_blocks(volume: HandMade) -> None:
    await volume.rewrite("/three", length=MIB)


async def two_files_one_block(volume: HandMade) -> None:
    block = volume.made["/three"].blocks[0].to_bytes(4, "little")
    await volume.patch(volume.fd_offset("/three") + 1024 + 4, block)


async def two_files_one_sub_block(volume: HandMade) -> None:
    block = volume.made["/sub"].blocks[0].to_bytes(4, "little")
    await volume.patch(volume.fd_offset("/dir") + 1024, block)


async def two_files_one_pointer_block(volume: HandMade) -> None:
    pointer = await volume.lv.read(volume.fd_offset("/sparse") + 1024, 4)
    await volume.patch(volume.fd_offset("/sparse") + 1028, pointer)


async def block_marked_free(volume: HandMade) -> None:
    await set_free(volume, FBB_FD, volume.made["/three"].blocks[1] >> 6, free=True)


async def pointer_block_marked_free(volume: HandMade) -> None:
    await set_free(volume, PB2_FD, 0, free=True)


async def block_nobody_owns(volume: HandMade) -> None:
    await set_free(volume, FBB_FD, 200, free=False)


async def sub_block_nobody_owns(volume: HandMade) -> None:
    await set_free(volume, SBC_FD, 70, free=False)


async def journal_of_esxi(volume: HandMade) -> None:
    await set_free(volume, FBB_FD, 200, free=False)
    slot = Heartbeat(lv_offset=slot_offset(100)).acquired(
        owner=HOST_B,
        stamp_us=1,
        journal_fb=FbAddress(block=200).pack(),
        journal_offset=200 * MIB,
        host=HOST,
    )
    await volume.patch(slot_offset(100), replace(slot, tail=bytes(348)).pack())


async def directory_odd_length(volume: HandMade) -> None:
    await volume.rewrite("/dir", length=volume.made["/dir"].desc.length - 1)


async def directory_longer_than_its_blocks(volume: HandMade) -> None:
    await volume.rewrite("/dir", length=140 * 1000)


async def directory_hole(volume: HandMade) -> None:
    await volume.patch(volume.entry_offset("/dir", 2), bytes(140))


async def directory_trailing_zeroes(volume: HandMade) -> None:
    await volume.rewrite("/dir/deep", length=3 * 140)


async def directory_named_twice(volume: HandMade) -> None:
    deep = volume.made["/dir/deep"]
    entry = DirEntry(
        type=FileType.DIRECTORY,
        address=deep.address,
        generation=deep.desc.generation,
        name=b"again",
    )
    await volume.patch(volume.entry_offset("/dir/deep", 2), entry.pack())
    await volume.rewrite("/dir/deep", length=3 * 140)


async def entry_without_name(volume: HandMade) -> None:
    await volume.patch(volume.entry_offset("/dir", 2) + 12, bytes(128))


async def entry_with_slash(volume: HandMade) -> None:
    await volume.patch(volume.entry_offset("/dir", 2) + 12, b"a/b")


async def entry_of_no_type(volume: HandMade) -> None:
    await volume.patch(volume.entry_offset("/dir", 2), b"\x63")


async def dot_is_elsewhere(volume: HandMade) -> None:
    await edit_entry(volume, "/dir", 0, address=volume.made["/"].address)


async def dots_are_swapped(volume: HandMade) -> None:
    await edit_entry(volume, "/dir", 0, name=b"..")


async def dot_dot_has_old_generation(volume: HandMade) -> None:
    await edit_entry(volume, "/dir/deep", 1, generation=1)


async def dots_are_missing(volume: HandMade) -> None:
    await volume.rewrite("/dir/deep", length=0)


async def name_twice(volume: HandMade) -> None:
    await edit_entry(volume, "/dir", 3, name=volume.made["/dir"].entries[2].name)


async def name_of_nothing(volume: HandMade) -> None:
    last = 399 % 200 << 22 | 399 // 200 << 6 | 4
    await edit_entry(volume, "/dir", 2, address=last)


async def name_of_older_file(volume: HandMade) -> None:
    await edit_entry(volume, "/dir", 2, generation=3)


async def name_of_other_type(volume: HandMade) -> None:
    await edit_entry(volume, "/dir", 2, type=FileType.SYMLINK)


async def too_many_links(volume: HandMade) -> None:
    await volume.rewrite("/sub", link_count=3)


async def directory_links(volume: HandMade) -> None:
    await volume.rewrite("/dir", link_count=2)


async def name_removed(volume: HandMade) -> None:
    root = volume.made["/"]
    index = next(i for i, entry in enumerate(root.entries) if entry.name == b"link")
    assert index == len(root.entries) - 1, "the last entry can simply be cut off"
    await volume.rewrite("/", length=root.desc.length - 140)


async def unlinked_but_open(volume: HandMade) -> None:
    await name_removed(volume)
    await volume.rewrite("/link", link_count=0)
    made = volume.made["/link"]
    entry = OrphanEntry(fd_address=made.address, generation=made.desc.generation, target_size=0)
    await note_orphan(volume, entry)


async def truncation_unfinished(volume: HandMade) -> None:
    await volume.rewrite("/three", length=MIB)
    made = volume.made["/three"]
    entry = OrphanEntry(fd_address=made.address, generation=made.desc.generation, target_size=MIB)
    await note_orphan(volume, entry)


async def orphan_of_older_file(volume: HandMade) -> None:
    entry = OrphanEntry(fd_address=volume.made["/three"].address, generation=1, target_size=0)
    await note_orphan(volume, entry)


async def orphan_table_noise(volume: HandMade) -> None:
    await volume.patch(journal_layout(volume, 2).orphan_offset + 512, b"noise")


async def lock_of_live_host(volume: HandMade) -> None:
    await use_slot(volume, 1)
    await lock_by(volume, volume.fd_offset("/three"), slot=1, generation=1)
    await lock_by(volume, volume.cluster_offset(FBB_FD, 0), slot=1, generation=1)


async def lock_of_dead_host(volume: HandMade) -> None:
    await use_slot(volume, 1, generation=5)
    await lock_by(volume, volume.fd_offset("/three"), slot=1, generation=4)


async def lock_of_released_slot(volume: HandMade) -> None:
    slot = Heartbeat(lv_offset=slot_offset(2), generation=3)
    await volume.patch(slot_offset(2), slot.pack())
    await lock_by(volume, volume.cluster_offset(SBC_FD, 0), slot=2, generation=3)


async def lock_on_unused_descriptor(volume: HandMade) -> None:
    free = volume.plan.geometry.fd_offset(399 % 200 << 22 | 399 // 200 << 6 | 4)  # type: ignore[arg-type]
    slot = Heartbeat(lv_offset=slot_offset(2), generation=3)
    await volume.patch(slot_offset(2), slot.pack())
    await lock_by(volume, free, slot=2, generation=2)


async def lock_of_the_future(volume: HandMade) -> None:
    await lock_by(volume, volume.fd_offset("/three"), slot=1, generation=9)


async def journal_commit_noise(volume: HandMade) -> None:
    await volume.patch(journal_layout(volume, 3).commit_offset(0), b"noise")


async def journal_body_lost(volume: HandMade) -> None:
    await use_slot(volume, 1)
    await commit(volume, 1, [(volume.fd_offset("/three") + 512, bytes(512))])
    await volume.patch(journal_layout(volume, 1).body_offset(1) + 600, b"\xff")


async def journal_of_free_slot(volume: HandMade) -> None:
    await commit(volume, 1, [(volume.fd_offset("/three") + 512, bytes(512))])


async def journal_over_journal(volume: HandMade) -> None:
    await use_slot(volume, 1)
    await commit(volume, 1, [(journal_layout(volume, 1).region_offset, bytes(512))])


async def journal_descriptor_gone(volume: HandMade) -> None:
    at = volume.plan.geometry.fd_offset(VLJ_FD)
    await volume.patch(at + 512 + 8, bytes(4))


async def crashed_before_in_place(volume: HandMade) -> None:
    """The bitmap stands as before the crash; the journal knows better."""
    await use_slot(volume, 1)
    at = volume.cluster_offset(FBB_FD, 0) + 512
    whole = await volume.lv.read(at, 512)
    await set_free(volume, FBB_FD, volume.made["/three"].blocks[1] >> 6, free=True)
    await commit(volume, 1, [(at, whole)])


async def two_journals_one_sector(volume: HandMade) -> None:
    at = volume.fd_offset("/three") + 512
    sector = await volume.lv.read(at, 512)
    for slot in (1, 2):
        await use_slot(volume, slot)
        await commit(volume, slot, [(at, sector)])


CASES: list[tuple[str, Damage]] = [
    ("lvm-corrupt", lvm_magic),
    ("lvm-corrupt", lvm_volume_size),
    ("descriptor-corrupt", descriptor_magic),
    ("descriptor-corrupt", descriptor_of_other_volume),
    ("descriptor-corrupt", descriptor_sub_block_size),
    ("descriptor-corrupt", parameters_checksum),
    ("heartbeat-corrupt", heartbeat_magic),
    ("heartbeat-corrupt", heartbeat_elsewhere),
    ("host-active", slot_in_use),
    ("system-file-corrupt", fbb_descriptor_type),
    ("system-file-corrupt", sbc_first_pointer),
    ("system-file-corrupt", pbc_header),
    ("cluster-corrupt", cluster_number),
    ("cluster-corrupt", cluster_total),
    ("resource-total", cluster_total),
    ("cluster-corrupt", cluster_first_free_wild),
    ("cluster-lock-corrupt", cluster_lock_magic),
    ("cluster-lock-corrupt", cluster_lock_of_other_kind),
    ("cluster-free-count", cluster_free_count),
    ("cluster-first-free", cluster_first_free),
    ("fd-corrupt", fd_foreign_address),
    ("fd-corrupt", fd_impossible_type),
    ("fd-corrupt", fd_block_size),
    ("fd-lock-corrupt", fd_lock),
    ("fd-empty", fd_without_links),
    ("fd-not-allocated", fd_marked_free),
    ("fd-length", fd_too_long),
    ("fd-block-count", fd_block_count),
    ("fd-tbz-count", fd_tbz_count),
    ("pointer-bad", pointer_of_wrong_kind),
    ("pointer-bad", pointer_past_the_volume),
    ("pointer-bad", pointer_block_with_noise),
    ("pointer-beyond-length", shorter_than_its_blocks),
    ("block-doubly-owned", two_files_one_block),
    ("block-doubly-owned", two_files_one_sub_block),
    ("block-doubly-owned", two_files_one_pointer_block),
    ("block-not-allocated", block_marked_free),
    ("block-not-allocated", pointer_block_marked_free),
    ("block-lost", block_nobody_owns),
    ("block-lost", sub_block_nobody_owns),
    ("foreign-journal", journal_of_esxi),
    ("directory-corrupt", directory_odd_length),
    ("directory-corrupt", directory_longer_than_its_blocks),
    ("directory-hole", directory_hole),
    ("directory-hole", directory_trailing_zeroes),
    ("directory-two-parents", directory_named_twice),
    ("dirent-corrupt", entry_without_name),
    ("dirent-corrupt", entry_with_slash),
    ("dirent-corrupt", entry_of_no_type),
    ("dirent-dot", dot_is_elsewhere),
    ("dirent-dot", dots_are_swapped),
    ("dirent-dot", dot_dot_has_old_generation),
    ("dirent-dot", dots_are_missing),
    ("dirent-duplicate", name_twice),
    ("dirent-dangling", name_of_nothing),
    ("dirent-dangling", fd_without_links),
    ("dirent-generation", name_of_older_file),
    ("dirent-type", name_of_other_type),
    ("link-count", too_many_links),
    ("link-count", directory_links),
    ("fd-unreachable", name_removed),
    ("orphan-pending", unlinked_but_open),
    ("orphan-pending", truncation_unfinished),
    ("orphan-stale", orphan_of_older_file),
    ("orphan-table-corrupt", orphan_table_noise),
    ("lock-held", lock_of_live_host),
    ("stale-lock", lock_of_dead_host),
    ("stale-lock", lock_of_released_slot),
    ("stale-lock", lock_on_unused_descriptor),
    ("lock-holder-bad", lock_of_the_future),
    ("journal-corrupt", journal_commit_noise),
    ("journal-corrupt", journal_body_lost),
    ("journal-corrupt", journal_of_free_slot),
    ("journal-corrupt", journal_over_journal),
    ("journal-corrupt", journal_descriptor_gone),
    ("journal-overlap", two_journals_one_sector),
    ("needs-replay", crashed_before_in_place),
]

CLEAN = [
    slot_in_use,
    journal_of_esxi,
    cluster_first_free,
    unlinked_but_open,
    truncation_unfinished,
    lock_of_live_host,
    lock_of_dead_host,
    lock_of_released_slot,
    lock_on_unused_descriptor,
    crashed_before_in_place,
]
"""What happens on sound volumes: it is told, and it is no error."""


async def test_volume_with_every_kind_of_file_is_clean() -> None:
    volume = await build_handmade()

    report = await assert_clean(volume.lun, allowed=frozenset())

    assert report.codes == frozenset()
    assert report.statistics["files"] == 8 + 6  # ours, and system files that are no directory
    assert report.statistics["directories"] == 4


@pytest.mark.parametrize(
    ("code", "damage"), CASES, ids=[f"{code}-{damage.__name__}" for code, damage in CASES]
)
async def test_damage_is_found(code: str, damage: Damage) -> None:
    volume = await build_handmade()
    await damage(volume)

    report = await check_device(volume.lun)

    found = [finding for finding in report.findings if finding.code == code]
    assert found, "\n".join(describe(report)) or "nothing was found"
    assert all(finding.severity is CATALOGUE[code][0] for finding in found)
    assert report.exit_status == (0 if damage in CLEAN else 4 if report.errors else 0)


@pytest.mark.parametrize("damage", CLEAN, ids=lambda damage: damage.__name__)
async def test_legal_state_is_no_error(damage: Damage) -> None:
    volume = await build_handmade()
    await damage(volume)

    report = await check_device(volume.lun)

    assert report.errors == (), "\n".join(describe(report))
    assert report.exit_status == 0


def test_every_code_has_a_damage_that_causes_it() -> None:
    assert {code for code, _ in CASES} == set(CATALOGUE)


async def test_doubly_owned_block_names_both_owners() -> None:
    volume = await build_handmade()
    block = volume.made["/three"].blocks[0]
    at = volume.resource_offset(PBC_FD, 0)
    await volume.patch(at, block.to_bytes(4, "little"))

    report = await check_device(volume.lun)

    (found,) = [finding for finding in report.findings if finding.code == "block-doubly-owned"]
    for path in ("/three", "/sparse"):
        assert f"{volume.made[path].address:#x}" in found.text


async def test_stale_locks_are_told_once_for_each_mount_that_ended() -> None:
    volume = await build_handmade()
    await use_slot(volume, 1, generation=5)
    for path in ("/three", "/sparse", "/dir/one"):
        await lock_by(volume, volume.fd_offset(path), slot=1, generation=4)
    await lock_by(volume, volume.fd_offset("/dir"), slot=1, generation=3)

    report = await check_device(volume.lun)

    texts = [finding.text for finding in report.findings if finding.code == "stale-lock"]
    assert len(texts) == 2
    assert any("generation 4) has ended and left 3 locks" in text for text in texts)


async def test_findings_name_path_and_place() -> None:
    volume = await build_handmade()
    await volume.rewrite("/dir/one", link_count=9)

    report = await check_device(volume.lun)

    (found,) = report.findings
    assert (found.code, found.path) == ("link-count", "/dir/one")
    assert found.fd == volume.made["/dir/one"].address


async def test_many_findings_of_one_code_are_counted_but_not_kept() -> None:
    volume = await build_handmade()
    region = b"\0" * (512 * 300)
    await volume.patch(slot_offset(0), region)

    report = await check_device(volume.lun)

    assert report.counts["heartbeat-corrupt"] == 300
    assert len(report.findings) == 100
    assert report.total(Severity.ERROR) == 300


@pytest.mark.slow
async def test_replay_in_memory_leaves_the_volume_alone() -> None:
    volume = await build_handmade()
    await crashed_before_in_place(volume)
    before = await volume.lun.read(0, volume.lun.size)

    await assert_clean(volume.lun, allowed=frozenset({"needs-replay"}))

    assert await volume.lun.read(0, volume.lun.size) == before


async def test_newer_half_of_a_journal_counts() -> None:
    volume = await build_handmade()
    await use_slot(volume, 1)
    at = volume.cluster_offset(FBB_FD, 0) + 512
    whole = await volume.lv.read(at, 512)
    await commit(volume, 1, [(at, bytes(512))], sequence=1)
    await commit(volume, 1, [(at, whole)], sequence=2)

    await assert_clean(volume.lun, allowed=frozenset({"needs-replay"}))


async def test_no_volume_and_foreign_volume_are_refused() -> None:
    volume = await build_handmade()
    await volume.patch(DESCRIPTOR_OFFSET + 4, b"\x18")  # VMFS-6

    with pytest.raises(Exception, match="VMFS-6"):
        await check_device(volume.lun)


def test_document_explains_every_code() -> None:
    text = DOCUMENT.read_text()
    described = set(re.findall(r"^### `([a-z-]+)`", text, flags=re.MULTILINE))

    assert described == set(CATALOGUE)
    for code, (severity, _) in CATALOGUE.items():
        section = text.split(f"### `{code}`")[1].split("\n### ")[0]
        assert severity.name.lower() in section.split("\n")[0], code


class Mending(MemoryDevice):
    """A LUN on which a live host puts something right between two looks."""

    def __init__(self, volume: HandMade, offset: int, data: bytes) -> None:
        super().__init__(volume.lun.size)
        self._pages = volume.lun._pages
        self._mend = LV_START + offset, data
        self._looks = 0

    async def read(self, offset: int, length: int) -> bytes:
        if offset == 0:
            self._looks += 1
            if self._looks == 2:
                await self.write(*self._mend)
        return await super().read(offset, length)


async def test_error_of_the_moment_on_a_live_volume_is_not_told() -> None:
    volume = await build_handmade()
    await use_slot(volume, 1)
    at = volume.fd_offset("/sub") + 512
    whole = await volume.lv.read(at, 512)
    await volume.rewrite("/sub", link_count=7)
    await volume.rewrite("/dir/one", link_count=8)

    report = await check_device(Mending(volume, at, whole))

    assert [found.path for found in report.errors] == ["/dir/one"]
    assert report.counts == {"host-active": 1, "link-count": 1}
