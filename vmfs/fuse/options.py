"""Mount options, as `-o` of mount(8) and fstab gives them.

Pure. `parse_options` reads one or more comma-separated strings into `MountOptions`; what it does
not know is an error that names it, except what mount(8) leaves in the string for itself
(`_netdev`, `noauto`, `x-systemd.*`, ...). The last of two contradicting options wins, as in
mount(8). A comma or a backslash in a value is written with a backslash before it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vmfs.device.opening import IoMode
from vmfs.errors import InvalidArgument

KERNEL_FLAGS: Final = {
    "suid": ("suid", "nosuid"),
    "nosuid": ("nosuid", "suid"),
    "dev": ("dev", "nodev"),
    "nodev": ("nodev", "dev"),
    "exec": ("exec", "noexec"),
    "noexec": ("noexec", "exec"),
    "atime": ("atime", "noatime"),
    "noatime": ("noatime", "atime"),
    "diratime": ("diratime", "nodiratime"),
    "nodiratime": ("nodiratime", "diratime"),
    "sync": ("sync", "async"),
    "async": ("async", "sync"),
    "dirsync": ("dirsync", ""),
}
"""Passed on to the kernel: option -> (what is passed, what it takes back)."""

IGNORED: Final = frozenset(
    {
        "defaults", "_netdev", "auto", "noauto", "fail", "nofail", "user", "nouser", "users",
        "owner", "group", "relatime", "norelatime", "strictatime", "lazytime", "nolazytime",
        "iversion", "noiversion", "mand", "nomand", "silent", "loud",
        "default_permissions", "noallow_other",
    }
)  # fmt: skip
"""For mount(8) itself, or without meaning here (`default_permissions` is always on)."""

IGNORED_PREFIXES: Final = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What a mount was asked for, beyond LUN and directory."""

    lockd: str | None = None  # lockd's socket; None: no locks, therefore read-only
    host: str | None = None  # name of this host; None: the machine's
    lun_name: str | None = None  # what lockd calls the LUN; None: lockd finds it by its path
    read_only: bool = False
    allow_other: bool | None = None  # None: yes for root, no for anybody else
    max_read: int | None = None  # bytes of the largest READ; None: the kernel's
    read_ahead_kib: int = 1024  # what the kernel reads ahead of a sequential reader
    fast: bool = True  # poll before waiting (vmfs.fuse.fast_wait)
    spin_us: int = 50  # microseconds to look for the next request before sleeping; 0: not at all
    log: str | None = None  # file for the log; None: stderr, or syslog in the background
    io: IoMode = IoMode.AUTO  # how the bytes of the LUN move: through the page cache, or past it
    profile: str = "production"  # pace of the heartbeat: production or test
    nonempty: bool = False  # say nothing when the mount hides what is in the directory
    kernel_flags: tuple[str, ...] = ()


def parse_options(*texts: str) -> MountOptions:
    """Read the values of all `-o`, in their order.

    Raises:
        InvalidArgument: an option is unknown, lacks its value, or has one that makes no sense.
    """
    options = MountOptions()
    for text in texts:
        for word in split_options(text):
            options = _with_option(options, word)
    return options


def split_options(text: str) -> list[str]:
    """Split at commas that have no backslash before them; empty words are dropped.

    Raises:
        InvalidArgument: the text ends inside of an escape.
    """
    words, word = [], ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise InvalidArgument(f"mount options {text!r} end with a backslash")
            word += escaped
        elif character == ",":
            words.append(word)
            word = ""
        else:
            word += character
    words.append(word)
    return [word for word in words if word]


def escape_option(text: str) -> str:
    """A value in which commas and backslashes mean themselves."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def libfuse_options(options: MountOptions, *, source: str, is_root: bool) -> set[str]:
    """What libfuse is told.

    Args:
        options: of the mount; `read_only` as the volume really is.
        source: the LUN's path; it is the first column of /proc/mounts and of df.
        is_root: only root may let others in without `user_allow_other` in /etc/fuse.conf.
    """
    passed = {f"fsname={escape_option(source)}", "subtype=vmfs", "default_permissions"}
    passed.add("ro" if options.read_only else "rw")
    passed.update(options.kernel_flags)
    if options.allow_other or (options.allow_other is None and is_root):
        passed.add("allow_other")
    if options.max_read is not None:
        passed.add(f"max_read={options.max_read}")
    return passed


def _with_option(options: MountOptions, word: str) -> MountOptions:
    name, equals, value = word.partition("=")
    if name in _VALUED:
        if not (equals and value):
            raise InvalidArgument(f"mount option {name} needs a value: {name}=...")
        return _VALUED[name](options, value)
    if word in _FLAGS:
        return dataclasses.replace(options, **_FLAGS[word])
    if word in KERNEL_FLAGS:
        passed, opposite = KERNEL_FLAGS[word]
        kept = tuple(flag for flag in options.kernel_flags if flag not in (passed, opposite))
        return dataclasses.replace(options, kernel_flags=(*kept, passed))
    if word in IGNORED or word.startswith(IGNORED_PREFIXES):
        return options
    raise InvalidArgument(
        f"unknown mount option {word!r}; vmfs has {', '.join(sorted([*_VALUED, *_FLAGS]))}"
    )


def _count(options: MountOptions, field: str, value: str, *, low: int, high: int) -> MountOptions:
    if not value.isdecimal() or not low <= int(value) <= high:
        raise InvalidArgument(
            f"mount option {field}={value}: a whole number from {low} to {high} is needed"
        )
    changed: dict[str, Any] = {field: int(value)}
    return dataclasses.replace(options, **changed)


def _io(options: MountOptions, value: str) -> MountOptions:
    try:
        return dataclasses.replace(options, io=IoMode(value))
    except ValueError:
        modes = ", ".join(mode.value for mode in IoMode)
        raise InvalidArgument(f"mount option io={value}: there are {modes}") from None


def _profile(options: MountOptions, value: str) -> MountOptions:
    if value not in PROFILES:
        raise InvalidArgument(f"mount option profile={value}: there are {' and '.join(PROFILES)}")
    return dataclasses.replace(options, profile=value)


PROFILES: Final = ("production", "test")

_VALUED: Final[dict[str, Callable[[MountOptions, str], MountOptions]]] = {
    "lockd": lambda options, value: dataclasses.replace(options, lockd=value),
    "host": lambda options, value: dataclasses.replace(options, host=value),
    "lun": lambda options, value: dataclasses.replace(options, lun_name=value),
    "io": _io,
    "log": lambda options, value: dataclasses.replace(options, log=value),
    "profile": _profile,
    "max_read": lambda options, value: _count(options, "max_read", value, low=4096, high=1 << 20),
    "read_ahead_kib": lambda options, value: _count(
        options, "read_ahead_kib", value, low=0, high=1 << 20
    ),
    "spin_us": lambda options, value: _count(options, "spin_us", value, low=0, high=1000),
}

_FLAGS: Final[dict[str, dict[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "allow_root": {"allow_other": True},
    "fast": {"fast": True},
    "nofast": {"fast": False},
    "nonempty": {"nonempty": True},
}
