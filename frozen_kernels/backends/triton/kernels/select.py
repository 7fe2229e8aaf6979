"""Selection by rank: the threshold among all scores, and the stream of those above it."""

import triton
import triton.language as tl

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
NAN_KEY = tl.constexpr(0x7F800001)  # every NaN orders above inf

# a key's 31 bits as three digits, from the top
HIGH_SHIFT = tl.constexpr(23)
MIDDLE_SHIFT = tl.constexpr(15)
DIGITS = tl.constexpr(256)  # of the first two
LOW_DIGITS = tl.constexpr(32768)


@triton.jit
def keys(scores):
    """int32 that order |score|."""
    return tl.minimum(scores.to(tl.float32).to(tl.int32, bitcast=True) & MAGNITUDE, NAN_KEY)


@triton.jit
def digit_of_rank(counts, rank, COUNT: tl.constexpr):
    """The digit that holds the rank-th smallest, and its rank among those of that digit."""
    reached = tl.cumsum(tl.load(counts + tl.arange(0, COUNT)), 0)
    below = reached < rank
    return tl.sum(below.to(tl.int32), 0), rank - tl.max(tl.where(below, reached, 0), 0)


@triton.jit
def owner(tensors, starts, sizes, COUNT: tl.constexpr):
    """The tensor whose programs begin last at or before this one: its address, size, and the program's place in it."""
    program = tl.program_id(0)
    scores = tensors[0]
    start = tl.zeros((), tl.int32)
    size = tl.zeros((), tl.int64) + sizes[0]
    for i in tl.static_range(1, COUNT):
        mine = program >= starts[i]
        scores = tl.where(mine, tensors[i], scores)
        start = tl.where(mine, starts[i], start)
        size = tl.where(mine, sizes[i], size)
    return scores, size, program - start


@triton.jit
def count_low(counts, low, match):
    """Adds the low digits where `match` to counts; equal ones, as of tied or bfloat16 scores, in one atomic."""
    first = tl.min(tl.where(match, low, LOW_DIGITS), 0)
    last = tl.max(tl.where(match, low, -1), 0)
    if first == last:
        tl.atomic_add(counts + first, tl.sum(match.to(tl.int32), 0).to(tl.int64), sem="relaxed")
    elif first < last:
        tl.atomic_add(counts + low, tl.full(low.shape, 1, tl.int64), mask=match, sem="relaxed")


@triton.jit(do_not_specialize=["rank"])
def count_kernel(
    counts, tensors, starts, sizes, rank,
    DIGIT: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Adds how often digit DIGIT occurs among the keys that share the digits before it with the rank-th smallest.

    counts int64 [256 + 256 + 32768] holds the digits' counts one after the other; every program works out the earlier
    digits for itself, so no launch stands between two passes. A program reads up to SPAN scores of one tensor.
    """
    scores, size, place = owner(tensors, starts, sizes, COUNT)
    prefix = tl.zeros((), tl.int32)
    if DIGIT > 0:
        prefix, rank = digit_of_rank(counts, rank, DIGITS)
    if DIGIT > 1:
        middle, rank = digit_of_rank(counts + DIGITS, rank, DIGITS)
        prefix = prefix * DIGITS + middle
    total = tl.zeros((DIGITS,), tl.int32)
    first = place.to(tl.int64) * SPAN
    for at in range(first, tl.minimum(first + SPAN, size), BLOCK):
        i = at + tl.arange(0, BLOCK)
        key = keys(tl.load(scores + i, mask=i < size, other=0))
        if DIGIT == 0:
            total += tl.histogram(key >> HIGH_SHIFT, DIGITS, mask=i < size)
        elif DIGIT == 1:
            match = (i < size) & (key >> HIGH_SHIFT == prefix)
            total += tl.histogram((key >> MIDDLE_SHIFT) & (DIGITS - 1), DIGITS, mask=match)
        else:
            match = (i < size) & (key >> MIDDLE_SHIFT == prefix)
            count_low(counts + 2 * DIGITS, key & (LOW_DIGITS - 1), match)
    if DIGIT < 2:
        tl.atomic_add(
            counts + DIGIT * DIGITS + tl.arange(0, DIGITS), total.to(tl.int64), mask=total != 0, sem="relaxed"
        )


@triton.jit(do_not_specialize=["rank"])
def key_kernel(out, counts, rank, BLOCK: tl.constexpr):
    """The key of the rank-th smallest from all three digits' counts; one program."""
    high, rank = digit_of_rank(counts, rank, DIGITS)
    middle, rank = digit_of_rank(counts + DIGITS, rank, DIGITS)
    low = tl.zeros((), tl.int32)
    reached = tl.zeros((), tl.int64)
    for start in range(0, LOW_DIGITS, BLOCK):
        some = tl.load(counts + 2 * DIGITS + start + tl.arange(0, BLOCK))
        low += tl.sum((reached + tl.cumsum(some, 0) < rank).to(tl.int32), 0)
        reached += tl.sum(some, 0)
    tl.store(out, ((high * DIGITS + middle).to(tl.int64) << MIDDLE_SHIFT) + low)


@triton.jit
def pack_above_kernel(out, scores, key, count, BYTES: tl.constexpr):
    """Bit i & 7 of byte i >> 3 says whether score i orders above the key."""
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)[None, :]
    i = byte[:, None] * 8 + bit
    above = keys(tl.load(scores + i, mask=i < count, other=0)) > tl.load(key)
    packed = tl.sum((above & (i < count)).to(tl.int32) << bit, 1)
    tl.store(out + byte, packed.to(tl.uint8), mask=byte * 8 < count)
