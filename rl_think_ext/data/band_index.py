"""The signatures of the texts that stay, and a hash table from bands to them: 4 bytes a slot beside the minima."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Minima = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]

# Texts that share boilerplate share bands. So many are compared per band, the earliest ones, that time stays linear.
MAX_BUCKET = 64
_LOAD = 0.6
_CHUNK = 1 << 16  # texts whose bands are hashed at a time when the table grows


class Found(NamedTuple):
    """Numbers of the texts that share a band, ascending, and [num_bands] slots where the text's own bands can go.

    -1 stands for a band whose bucket is full: it is not stored.
    """

    numbers: Indices
    slots: Indices


class BandIndex:
    """Open addressing over all bands together: a slot holds the number of a text plus one, or 0.

    What a slot's text is compared by are its minima, so no key is stored. A slot that a text took for another of its
    bands is as good as one of its own: looking it up compares the band that is asked for.
    """

    def __init__(self, num_bands: int, rows: int) -> None:
        self._shape = (num_bands, rows)
        self._minima: Minima = np.empty((256, num_bands * rows), dtype=np.uint32)
        self._table: Minima = np.zeros(1 << 12, dtype=np.uint32)
        self._stored = np.zeros((256, (num_bands + 7) // 8), dtype=np.uint8)  # bits: which bands are in the table
        self._size = 0
        self.num_full = 0

    def __len__(self) -> int:
        return self._size

    def minima(self, numbers: Indices) -> Minima:
        """[N, num_bands x rows] minima of stored texts."""
        return self._minima[numbers]

    def find(self, minima: Minima) -> Found:
        """The texts that share a whole band with these minima."""
        num_bands, rows = self._shape
        asked = minima.reshape(num_bands, rows)
        slots = self._homes(minima[None])[0]
        num_same = np.zeros(num_bands, dtype=np.int64)
        found: list[Indices] = []
        live = np.arange(num_bands)
        while live.size:
            entries = self._table[slots[live]].astype(np.int64) - 1
            live, entries = live[entries >= 0], entries[entries >= 0]
            columns = live[:, None] * rows + np.arange(rows)
            same = (self._minima[entries[:, None], columns] == asked[live]).all(axis=1)
            found.append(entries[same])
            num_same[live[same]] += 1
            live = live[num_same[live] < MAX_BUCKET]
            slots[live] = (slots[live] + 1) % len(self._table)
        full = num_same >= MAX_BUCKET
        self.num_full += int(full.sum())
        return Found(np.unique(np.concatenate(found)), np.where(full, -1, slots))

    def insert(self, minima: Minima, slots: Indices) -> None:
        """Store a text whose bands belong behind `slots`, as `find` said them just before."""
        if self._size == len(self._minima):
            for rows in (self._minima, self._stored):
                rows.resize((self._size + self._size // 4, rows.shape[1]), refcheck=False)
        self._minima[self._size] = minima
        self._stored[self._size] = np.packbits(slots >= 0)
        self._size += 1
        slots = slots[slots >= 0]
        self._place(slots, np.full(len(slots), self._size, dtype=np.uint32))
        if self._size * self._shape[0] > _LOAD * len(self._table):
            self._grow()

    def _place(self, slots: Indices, entries: Minima) -> None:
        """Put each entry into the first free slot from its own on; of several that want one slot, one gets it."""
        while slots.size:
            free = self._table[slots] == 0
            self._table[slots[free]] = entries[free]
            wait = self._table[slots] != entries
            slots, entries = (slots[wait] + 1) % len(self._table), entries[wait]

    def _grow(self) -> None:
        self._table = np.zeros(2 * len(self._table), dtype=np.uint32)
        for first in range(0, self._size, _CHUNK):
            chunk = slice(first, min(first + _CHUNK, self._size))
            stored = np.unpackbits(self._stored[chunk], axis=1, count=self._shape[0]).astype(bool)
            numbers = np.arange(chunk.start + 1, chunk.stop + 1, dtype=np.uint32)
            homes = self._homes(self._minima[chunk])
            self._place(homes[stored], np.repeat(numbers, stored.sum(axis=1)))

    def _homes(self, minima: Minima) -> Indices:
        """[N, num_bands] slots where the search for each band begins."""
        num_bands, rows = self._shape
        values = minima.reshape(len(minima), num_bands, rows).astype(np.uint64)
        hashes = np.repeat(np.arange(num_bands, dtype=np.uint64)[None], len(minima), axis=0)
        for row in range(rows):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[:, :, row]
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        return ((hashes ^ (hashes >> np.uint64(33))) % np.uint64(len(self._table))).astype(np.int64)
