"""A second description of every record, by hand from the format: offset, kind, name.

It is deliberately not made from the records' own layouts: a slip in one shows against the other.
What no line names is reserved and must be zero in what we write.
"""

from typing import Final

Field = tuple[int, str, str]

LOCK: Final[list[Field]] = [
    (0x000, "u32", "type"),
    (0x004, "u64", "own LV offset"),
    (0x00C, "u64", "holder's heartbeat slot, LV offset"),
    (0x014, "u64", "generation of that slot"),
    (0x01C, "u64", "token"),
    (0x024, "u32", "mode"),
    (0x028, "uuid", "exclusive owner"),
    (0x038, "u64", "acquired at, seconds of uptime"),
    (0x040, "u32", "shared holders"),
    (0x044, "u64", "holder 0: heartbeat slot"),
    (0x04C, "u64", "holder 0: generation"),
    (0x054, "uuid", "holder 0: owner"),
    (0x064, "u64", "holder 1: heartbeat slot"),
    (0x06C, "u64", "holder 1: generation"),
    (0x074, "uuid", "holder 1: owner"),
    (0x164, "u32", "global holders"),
    (0x168, "u64", "global generation"),
    (0x170, "u32", "break flag"),
]

HOST_INFO: Final[list[Field]] = [
    (0x00, "u32", "magic VMFH"),
    (0x04, "u32", "version"),
    (0x08, "text64", "host name"),
    (0x48, "u32", "pid"),
    (0x4C, "u64", "nonce"),
    (0x54, "u32", "beat interval, ms"),
    (0x58, "u32", "lease, ms"),
]

HEARTBEAT: Final[list[Field]] = [
    (0x00, "u32", "magic: ..01 free, ..02 in use"),
    (0x04, "u64", "own LV offset"),
    (0x0C, "u64", "generation"),
    (0x14, "u64", "stamp, us of uptime"),
    (0x1C, "uuid", "owner"),
    (0x2C, "u32", "journal, file block address"),
    (0x30, "u32", "driver major"),
    (0x34, "u8", "driver minor"),
    (0x35, "u8", "lock implementation"),
    (0x36, "text46", "IP address"),
    (0x64, "u64", "journal, LV offset"),
    (0x6C, "uuid", "replayer"),
    (0x94, "u64", "replayer's heartbeat slot"),
    (0x9C, "u64", "replayer's generation"),
    *[(0xA4 + offset, kind, f"ours: {name}") for offset, kind, name in HOST_INFO],
]

PARAMETERS: Final[list[Field]] = [
    (0x00, "u32", "magic VMFP"),
    (0x04, "u16", "version"),
    (0x06, "u8", "lock protocol: 1 ATS, 2 reservation"),
    (0x08, "u32", "flags: 1 no resident files"),
    (0x0C, "u32", ".vlj.sf, FD address"),
    (0x10, "u32", "journals"),
    (0x14, "u64", "bytes of a journal region"),
    (0x6C, "u32", "crc32 of the 108 bytes before"),
]

DESCRIPTOR: Final[list[Field]] = [
    (0x000, "u32", "magic"),
    (0x004, "u32", "major"),
    (0x008, "u8", "minor"),
    (0x009, "uuid", "filesystem UUID"),
    (0x019, "u32", "config: 2 public, 4 dense sub-blocks"),
    (0x01D, "text128", "label"),
    (0x09D, "u32", "sector size"),
    (0x0A1, "u64", "file block size"),
    (0x0A9, "u32", "created, seconds"),
    (0x0AD, "u32", "snapshot id"),
    (0x0B1, "uuid", "LV UUID"),
    (0x0C1, "u32", "LV snapshot id"),
    (0x0D1, "u32", "FDC header size"),
    (0x0D5, "u32", "FDC clusters per group"),
    (0x0D9, "u32", "sub-block size"),
    (0x0DD, "u32", "journal slots per transaction"),
    (0x0E1, "u64", ".pb2.sf descriptor, LV offset"),
    (0x0E9, "u32", ".pb2.sf, FD address"),
    (0x0ED, "uuid", "creating host"),
    (0x0FD, "u64", "global generation"),
    (0x105, "u64", ".sdd.sf descriptor, LV offset"),
    (0x10D, "u32", ".sdd.sf, FD address"),
    *[(0x190 + offset, kind, f"ours: {name}") for offset, kind, name in PARAMETERS],
]

RESOURCE_HEADER: Final[list[Field]] = [
    (0x00, "u32", "resources per cluster, R"),
    (0x04, "u32", "clusters per group, C"),
    (0x08, "u32", "first group, H"),
    (0x0C, "u32", "resource size, S"),
    (0x10, "u32", "group size, G"),
    (0x14, "u32", "total, low word"),
    (0x18, "u32", "groups"),
    (0x1C, "u32", "total, high word"),
]

CLUSTER_META: Final[list[Field]] = [
    (0x00, "u32", "cluster number"),
    (0x04, "u32", "total"),
    (0x08, "u32", "free"),
    (0x0C, "u32", "first free"),
    (0x10, "bytes64", "bitmap, 1 = free"),
    (0x50, "bytes16", "type data"),
    (0x60, "u32", "priority"),
]

FILE_DESC: Final[list[Field]] = [
    (0x00, "u32", "own FD address"),
    (0x04, "u32", "generation"),
    (0x08, "u32", "links"),
    (0x0C, "u32", "type"),
    (0x10, "u32", "flags"),
    (0x14, "u64", "length"),
    (0x1C, "u64", "block size"),
    (0x24, "u64", "allocated blocks"),
    (0x2C, "u32", "mtime"),
    (0x30, "u32", "ctime"),
    (0x34, "u32", "atime"),
    (0x38, "u32", "uid"),
    (0x3C, "u32", "gid"),
    (0x40, "u32", "mode"),
    (0x44, "u32", "ZLA"),
    (0x48, "u32", "TBZ blocks, low word"),
    (0x4C, "u32", "COW blocks, low word"),
    (0x50, "u32", "new blocks, low word"),
    (0x54, "u32", "TBZ blocks, high word"),
    (0x58, "u32", "COW blocks, high word"),
    (0x5C, "u32", "pointer blocks"),
    (0x60, "u32", "new blocks, high word"),
    (0x64, "u32", "signature (VMFS-6)"),
    (0x68, "u32", "affinity FD"),
    (0x6C, "u32", "log2 of TBZ granularity"),
    (0x89, "u8", "log2 of block size"),
]

DIR_ENTRY: Final[list[Field]] = [
    (0x00, "u32", "type"),
    (0x04, "u32", "FD address"),
    (0x08, "u32", "generation"),
    (0x0C, "text128", "name"),
]

LVM_DEVICE: Final[list[Field]] = [
    (0x00, "u32", "magic"),
    (0x04, "u32", "major"),
    (0x08, "u32", "minor"),
    (0x0C, "u8", "disk id: type"),
    (0x0D, "u8", "disk id: length"),
    (0x0E, "u16", "disk id: LUN"),
    (0x10, "u8", "disk id: device type"),
    (0x11, "u8", "disk id: SCSI level"),
    (0x12, "text8", "vendor"),
    (0x1A, "text16", "model"),
    (0x2A, "text4", "revision"),
    (0x2E, "text44", "disk id"),
    (0x5A, "u32", "sector size"),
    (0x5E, "u64", "device bytes"),
    (0x66, "u32", "volumes"),
    (0x6A, "u32", "extents"),
    (0x6E, "u32", "last extent"),
    (0x72, "u64", "generation"),
    (0x7A, "u64", "data offset"),
    (0x82, "uuid", "device UUID"),
    (0x92, "u64", "created, us"),
    (0x9A, "u64", "modified, us"),
    (0xA2, "uuid", "LVM lock owner"),
    (0xB2, "u64", "LVM lock time"),
    (0xBE, "u32", "extent maps"),
    (0xC2, "u64", "extended header"),
    (0xCA, "u32", "metadata alignment"),
    (0xCE, "u32", "256 MiB units (VMFS-6)"),
    (0xD2, "u32", "flags"),
]

LVM_VOLUME: Final[list[Field]] = [
    (0x000, "u64", "LV bytes"),
    (0x008, "u64", "generation"),
    (0x010, "u32", "state"),
    (0x014, "text64", "LV UUID, printed"),
    (0x054, "uuid", "LV UUID"),
    (0x064, "u32", "snapshot id"),
    (0x068, "u64", "created, us"),
    (0x070, "u32", "volume index"),
    (0x074, "u32", "segments on this device"),
    (0x078, "u64", "first segment"),
    (0x080, "u64", "last segment"),
    (0x088, "u64", "modified, us"),
    (0x090, "u32", "devices"),
    (0x110, "u32", "extent entries consumed"),
]

LVM_EXTENT: Final[list[Field]] = [
    (0x00, "u8", "used"),
    (0x01, "u32", "extent id"),
    (0x05, "u32", "volume index"),
    (0x09, "u64", "physical offset"),
    (0x11, "u64", "logical offset"),
    (0x19, "u64", "length"),
    (0x21, "u32", "version"),
]

LVM_EXTENDED: Final[list[Field]] = [
    (0x00, "u32", "magic"),
    (0x04, "u32", "extent maps"),
    (0x08, "u64", "data offset"),
    (0x10, "u64", "next header"),
]

RECORDS: Final[dict[str, list[Field]]] = {
    "heartbeat-free": HEARTBEAT,
    "heartbeat-in-use": HEARTBEAT,
    "heartbeat-replaying": HEARTBEAT,
    "host-info": HOST_INFO,
    "lock-free": LOCK,
    "lock-exclusive": LOCK,
    "lock-shared": LOCK,
    "fs-descriptor": DESCRIPTOR,
    "volume-parameters": PARAMETERS,
    "resource-header": RESOURCE_HEADER,
    "cluster-meta": CLUSTER_META,
    "file-desc": FILE_DESC,
    "file-desc-unused": FILE_DESC,
    "dir-entry": DIR_ENTRY,
    "lvm-device-header": LVM_DEVICE,
    "lvm-volume-entry": LVM_VOLUME,
    "lvm-extent-entry": LVM_EXTENT,
    "lvm-extended-header": LVM_EXTENDED,
}
