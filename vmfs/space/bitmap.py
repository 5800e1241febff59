"""Choosing, taking and freeing resources of one cluster: plain functions on its bitmap.

A *mask* is the bitmap as a numpy array of bools, one per resource, True = free; *bits* are the same
as one integer, which is faster for single resources. Nothing here knows who asks, what else was
promised, or where the cluster lies; `vmfs.space.allocator` does. A resource that is taken twice or
freed twice is damage (two files own it, or will): it is always an error.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmfs.errors import CorruptRecord
from vmfs.ondisk.resource import RESOURCE_COUNT_MAX, ClusterMeta

Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

_BITMAP_SIZE: Final = RESOURCE_COUNT_MAX // 8


def free_mask(meta: ClusterMeta) -> Mask:
    """The bitmap of a cluster as a mask (a copy, writable), one element per resource."""
    return mask_of(meta.free_bits, meta.total)


def mask_of(bits: int, total: int) -> Mask:
    """Bits as a mask (writable), one element per resource."""
    packed = np.frombuffer(bits.to_bytes(_BITMAP_SIZE, "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=total, bitorder="little").astype(np.bool_)


def bits_of(indices: Indices) -> int:
    """Resources as bits; each is in the cluster."""
    bits = 0
    for index in indices.tolist():
        bits |= 1 << index
    return bits


def choose_one(bits: int, *, near: int = 0) -> int | None:
    """As `choose` of one, of what is free in `bits`; None when nothing is."""
    ahead = bits >> near
    if ahead:
        return near + (ahead & -ahead).bit_length() - 1
    return (bits & -bits).bit_length() - 1 if bits else None


def runs(mask: Mask) -> tuple[Indices, Indices]:
    """The maximal runs of free resources, ascending: where each starts, how long it is."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    starts, ends = edges[0::2], edges[1::2]
    return starts, ends - starts


def choose(mask: Mask, count: int, *, near: int = 0) -> Indices:
    """Choose up to `count` free resources, in the order in which a file should use them.

    A run that holds all of them wins: the one that contains `near` (from `near` on), else the next
    one after it, else the first one. When none does, the pieces begin at `near`, if that is free,
    and go on with the longest runs.

    Args:
        mask: what may be chosen.
        count: how many are wanted; 0 or more.
        near: where the file would like to continue; may lie past the end.

    Returns:
        `count` indices, or all that are free when there are fewer; each at most once.
    """
    assert count >= 0, f"count {count}"
    assert near >= 0, f"near {near}"
    continued = mask[near : near + count]
    if len(continued) == count and continued.all():
        return np.arange(near, near + count, dtype=np.int64)
    starts, lengths = runs(mask)
    fits = starts[lengths >= count]
    if len(fits):
        after = fits[fits >= near]
        start = int(after[0] if len(after) else fits[0])
        return np.arange(start, start + count, dtype=np.int64)
    order = np.lexsort((starts, -lengths))
    pieces = [np.arange(starts[i], starts[i] + lengths[i], dtype=np.int64) for i in order]
    if near < len(mask) and mask[near]:
        blocked = np.flatnonzero(~mask[near:])
        end = near + int(blocked[0]) if len(blocked) else len(mask)
        first = np.arange(near, end, dtype=np.int64)
        rest = [piece[(piece < near) | (piece >= end)] for piece in pieces]
        pieces = [first, *rest]
    chosen = np.concatenate([np.empty(0, dtype=np.int64), *pieces])
    return chosen[:count]


def take(meta: ClusterMeta, indices: Indices, *, at: int) -> ClusterMeta:
    """Mark free resources as used.

    Args:
        meta: the cluster as it is.
        indices: which; each in the cluster, each once.
        at: LV offset of the cluster metadata, for the message.

    Raises:
        CorruptRecord: one of them is in use already. Nothing is changed then.
    """
    return _flip(meta, indices, at=at, freeing=False)


def release(meta: ClusterMeta, indices: Indices, *, at: int) -> ClusterMeta:
    """Mark used resources as free. Arguments and errors as in `take`.

    Raises:
        CorruptRecord: one of them is free already (somebody freed what another file owns).
    """
    return _flip(meta, indices, at=at, freeing=True)


def _flip(meta: ClusterMeta, indices: Indices, *, at: int, freeing: bool) -> ClusterMeta:
    before, seen = meta.free_bits, 0
    for resource in indices.tolist():
        if not 0 <= resource < meta.total:
            raise CorruptRecord(
                ClusterMeta.NAME,
                at,
                "resource",
                resource,
                f"below {meta.total} in cluster {meta.number}",
            )
        bit = 1 << resource
        if seen & bit or bool(before & bit) is freeing:
            raise CorruptRecord(
                ClusterMeta.NAME,
                at,
                f"bitmap, resource {resource} of cluster {meta.number}",
                "free" if freeing else "in use",
                "in use, since it is being freed" if freeing else "free, since it is being taken",
            )
        seen |= bit
    return meta.with_free_bits(before ^ seen)
