"""Who gets which variant: a keyed hash of the contact, the same in Python and in ClickHouse.

The hash is SipHash-2-4 (Aumasson and Bernstein, SipHash: a fast short-input PRF, INDOCRYPT 2012) over the eight
bytes of the contact_id, with a key derived from a salt by SHA-256. A pseudorandom function is what makes the
draws of two salts independent of each other and of the ids; ClickHouse has it as `sipHash64Keyed`. The hash modulo
one million is the contact's bucket, and a share of the contacts is a range of buckets.

Each decision has a salt of its own: the holdout's name, the layer's name, and the experiment's for traffic and for
variants. So a contact's place in one says nothing about its place in another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

BUCKETS = 1_000_000
"""Shares are whole millionths."""

HOLDOUT = "holdout"
"""Gets none of the mail that the global holdout covers."""

REMAINDER = "remainder"
"""In the audience but not in the test: gets the winner, once there is one."""

OUTSIDE = ""
"""Not in the experiment's part of its layer (another experiment may have the contact)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
_CHUNK = 1 << 15  # rows at a time: the hash's state stays in the cache


@dataclass(frozen=True)
class Holdout:
    """Contacts who are left out of all experiments and campaigns that name it.

    Args:
        name: also the salt; a name with a period in it (`holdout/2026q1`) draws others in the next period.
        share: of all contacts, 0 to 1.
    """

    name: str
    share: float

    def __post_init__(self) -> None:
        _check_name("holdout", self.name)
        _check_share(f"holdout {self.name}: share", self.share)


@dataclass(frozen=True)
class LayerSlot:
    """A range of a layer. Experiments in ranges of one layer that do not overlap never share a contact.

    Args:
        layer: name of the layer, also its salt.
        start, end: of the range, as shares from 0 to 1; the end is not in it.
    """

    layer: str
    start: float
    end: float

    def __post_init__(self) -> None:
        _check_name("layer", self.layer)
        _check_share(f"layer {self.layer}: start", self.start)
        _check_share(f"layer {self.layer}: end", self.end)
        if _buckets(self.start) >= _buckets(self.end):
            raise ValueError(f"layer {self.layer}: start must be below end by a millionth at least")

    def overlaps(self, other: LayerSlot) -> bool:
        """Whether a contact can be in both."""
        return (
            self.layer == other.layer
            and _buckets(self.start) < _buckets(other.end)
            and _buckets(other.start) < _buckets(self.end)
        )


def free_slot(layer: str, share: float, taken: Iterable[LayerSlot]) -> LayerSlot:
    """The first free range of a layer that is wide enough.

    Args:
        layer: name of the layer.
        share: width of the range, above 0 to 1.
        taken: ranges of the running experiments; those of other layers do not matter.

    Raises:
        ValueError: there is no such range, or the share is not one.
    """
    _check_share(f"layer {layer}: share", share)
    wanted = max(_buckets(share), 1)
    start = 0
    for slot in sorted((slot for slot in taken if slot.layer == layer), key=lambda slot: slot.start):
        if _buckets(slot.start) - start >= wanted:
            break
        start = max(start, _buckets(slot.end))
    if BUCKETS - start < wanted:
        raise ValueError(
            f"layer {layer} has no free range of {share:.2%}; end an experiment or take a smaller share"
        )
    return LayerSlot(layer, start / BUCKETS, (start + wanted) / BUCKETS)


@dataclass(frozen=True)
class Allocation:
    """How an experiment divides its contacts.

    Args:
        experiment: name, also the salt. Another name draws anew.
        weights: variants and their relative weights, above 0; the order matters (a change of weights moves as few
            contacts as ranges in that order allow). At least one variant.
        traffic: share of the audience that is tested; the others are the `REMAINDER`. Raising it keeps everybody's
            variant.
        layer: the experiment's range of a layer; None takes the whole audience.
        holdout: the global holdout; None has none.

    Raises:
        ValueError: a name or a number is not usable; the message says which.
    """

    experiment: str
    weights: Mapping[str, float]
    traffic: float = 1.0
    layer: LayerSlot | None = None
    holdout: Holdout | None = None
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_name("experiment", self.experiment)
        _check_share(f"experiment {self.experiment}: traffic", self.traffic)
        if not self.weights:
            raise ValueError(f"experiment {self.experiment} has no variants")
        for variant, weight in self.weights.items():
            _check_name(f"experiment {self.experiment}: variant", variant)
            if variant in (HOLDOUT, REMAINDER):
                raise ValueError(f"experiment {self.experiment}: no variant may be called {variant}")
            if not (np.isfinite(weight) and weight > 0):
                raise ValueError(f"experiment {self.experiment}: weight of {variant} must be above 0")
        cumulative = np.cumsum(np.fromiter(self.weights.values(), dtype=np.float64))
        ends = np.rint(cumulative / cumulative[-1] * BUCKETS).astype(np.int64)
        if (np.diff(ends, prepend=0) < 1).any():
            raise ValueError(f"experiment {self.experiment}: a weight is below a millionth of all")
        object.__setattr__(self, "_ends", tuple(int(end) for end in ends))

    def assign(self, contact_ids: pl.Series | np.ndarray | Iterable[int]) -> pl.Series:
        """The variant of each contact.

        Args:
            contact_ids: (n,) integers; nulls are `OUTSIDE`.

        Returns:
            (n,) a String series `variant`: a variant, `HOLDOUT`, `REMAINDER` or `OUTSIDE`.
        """
        ids = contact_ids if isinstance(contact_ids, pl.Series) else pl.Series(np.asarray(contact_ids))
        if not len(ids):
            return pl.Series("variant", [], dtype=pl.String)
        if not ids.dtype.is_integer():
            raise ValueError(f"contact_ids must be integers, not {ids.dtype}")
        names = [*self.weights, HOLDOUT, REMAINDER, OUTSIDE]
        holdout, remainder, outside = range(len(names) - 3, len(names))
        words = ids.fill_null(0).to_numpy().astype(np.uint64)
        codes = np.searchsorted(
            np.array(self._ends), _bucket(words, self._variant_salt), side="right"
        ).astype(np.uint32)
        if _buckets(self.traffic) < BUCKETS:
            codes[_bucket(words, self._traffic_salt) >= _buckets(self.traffic)] = remainder
        if self.layer is not None:
            bucket = _bucket(words, _layer_salt(self.layer))
            is_in = (bucket >= _buckets(self.layer.start)) & (bucket < _buckets(self.layer.end))
            codes[~is_in] = outside
        if self.holdout is not None:
            is_held = _bucket(words, _holdout_salt(self.holdout)) < _buckets(self.holdout.share)
            codes[is_held] = holdout
        codes[ids.is_null().to_numpy()] = outside
        return pl.Series("variant", names, dtype=pl.String).gather(pl.Series(codes))

    def sql(self, contact_id: str = "contact_id") -> str:
        """A ClickHouse expression of type String that gives what `assign` gives.

        Args:
            contact_id: an SQL expression of the contact's id. It is put into the text as it is.
        """
        branches = [f"isNull({contact_id}), '{OUTSIDE}'"]
        if self.holdout is not None:
            bucket = _bucket_sql(contact_id, _holdout_salt(self.holdout))
            branches.append(f"{bucket} < {_buckets(self.holdout.share)}, '{HOLDOUT}'")
        if self.layer is not None:
            bucket = _bucket_sql(contact_id, _layer_salt(self.layer))
            first, last = _buckets(self.layer.start), _buckets(self.layer.end) - 1
            branches.append(f"{bucket} not between {first} and {last}, '{OUTSIDE}'")
        if _buckets(self.traffic) < BUCKETS:
            bucket = _bucket_sql(contact_id, self._traffic_salt)
            branches.append(f"{bucket} >= {_buckets(self.traffic)}, '{REMAINDER}'")
        *others, last_variant = self.weights
        bucket = _bucket_sql(contact_id, self._variant_salt)
        for variant, end in zip(others, self._ends, strict=False):
            branches.append(f"{bucket} < {end}, '{variant}'")
        return f"multiIf({', '.join(branches)}, '{last_variant}')"

    def bucket_sql(self, contact_id: str = "contact_id") -> str:
        """A ClickHouse expression of the contact's bucket among the variants: 0 to `BUCKETS` - 1."""
        return _bucket_sql(contact_id, self._variant_salt)

    def words(self, contact_id: int) -> str:
        """How a contact came to its place, in a sentence."""
        word = np.array([contact_id]).astype(np.uint64)
        share = f"{int(_bucket(word, self._variant_salt)[0]) / BUCKETS:.2%}"
        parts, start = [], 0
        for variant, end in zip(self.weights, self._ends, strict=True):
            parts.append(f"{variant} {start / BUCKETS:.2%} to {end / BUCKETS:.2%}")
            start = end
        said = f"hash of {self.experiment} and the contact: {share}; {', '.join(parts)}"
        if _buckets(self.traffic) < BUCKETS:
            place = int(_bucket(word, self._traffic_salt)[0]) / BUCKETS
            said += f"; among those tested below {self.traffic:.2%}: {place:.2%}"
        if self.layer is not None:
            place = int(_bucket(word, _layer_salt(self.layer))[0]) / BUCKETS
            said += f"; layer {self.layer.layer}, {self.layer.start:.2%} to {self.layer.end:.2%}: {place:.2%}"
        if self.holdout is not None:
            place = int(_bucket(word, _holdout_salt(self.holdout))[0]) / BUCKETS
            said += f"; {self.holdout.name} below {self.holdout.share:.2%}: {place:.2%}"
        return said

    @property
    def _variant_salt(self) -> str:
        return f"variant\n{self.experiment}"

    @property
    def _traffic_salt(self) -> str:
        return f"traffic\n{self.experiment}"


def batch_sql(experiment: str, count: int, contact_id: str = "contact_id") -> str:
    """A ClickHouse expression of which of `count` batches of about equal size a contact is in, from 0.

    With a salt of its own: a batch says nothing about variants.
    """
    return f"intDiv({_bucket_sql(contact_id, f'batch{chr(10)}{experiment}')} * {count}, {BUCKETS})"


def _layer_salt(slot: LayerSlot) -> str:
    return f"layer\n{slot.layer}"


def _holdout_salt(holdout: Holdout) -> str:
    return f"holdout\n{holdout.name}"


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: a name is letters, digits and _ . / -, at most 200, a letter or digit first"
        )


def _check_share(what: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{what} must be between 0 and 1, not {share}")


def _buckets(share: float) -> int:
    return round(share * BUCKETS)


def _key(salt: str) -> tuple[int, int]:
    digest = hashlib.sha256(salt.encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def _bucket_sql(contact_id: str, salt: str) -> str:
    low, high = _key(salt)
    return f"sipHash64Keyed((toUInt64({low}), toUInt64({high})), toInt64({contact_id})) % {BUCKETS}"


def _bucket(words: np.ndarray, salt: str) -> np.ndarray:
    """(n,) int64 buckets of (n,) uint64 words."""
    low, high = _key(salt)
    buckets = np.empty(len(words), dtype=np.int64)
    for first in range(0, len(words), _CHUNK):
        chunk = words[first : first + _CHUNK]
        buckets[first : first + _CHUNK] = siphash(chunk, low, high) % np.uint64(BUCKETS)
    return buckets


def siphash(words: np.ndarray, low: int, high: int) -> np.ndarray:
    """SipHash-2-4 of messages of eight bytes.

    Args:
        words: (n,) uint64, the messages read as little-endian numbers.
        low, high: the key's halves, read likewise.

    Returns:
        (n,) uint64.
    """
    v0 = np.full(len(words), low ^ 0x736F6D6570736575, dtype=np.uint64)
    v1 = np.full(len(words), high ^ 0x646F72616E646F6D, dtype=np.uint64)
    v2 = np.full(len(words), low ^ 0x6C7967656E657261, dtype=np.uint64)
    v3 = np.full(len(words), high ^ 0x7465646279746573, dtype=np.uint64)

    def add_rotate_xor(a: np.ndarray, b: np.ndarray, bits: int) -> None:
        a += b
        left = b << np.uint64(bits)
        b >>= np.uint64(64 - bits)
        b |= left
        b ^= a

    def turn(a: np.ndarray) -> None:
        left = a << np.uint64(32)
        a >>= np.uint64(32)
        a |= left

    def rounds(count: int) -> None:
        for _ in range(count):
            add_rotate_xor(v0, v1, 13)
            turn(v0)
            add_rotate_xor(v2, v3, 16)
            add_rotate_xor(v0, v3, 21)
            add_rotate_xor(v2, v1, 17)
            turn(v2)

    length = np.uint64(8 << 56)
    for word in (words, length):
        np.bitwise_xor(v3, word, out=v3)
        rounds(2)
        np.bitwise_xor(v0, word, out=v0)
    np.bitwise_xor(v2, np.uint64(0xFF), out=v2)
    rounds(4)
    return v0 ^ v1 ^ v2 ^ v3
