"""Tiles of codes as operands of the tensor cores: stored or generated words in, one tile of a dtype out.

The codes of bits (sign, constant) come as +-2.0 and 0: in every float dtype 2.0 is a single bit, next to the sign, so a
16-bit weight is cut out of a pair of keep and sign bits by one product and one AND. `unit` is what a code is worth.
A dropped weight may be -0.0, which sums and products with anything treat as 0.0.
"""

import triton
import triton.language as tl

from .tile import CONSTANT, NORMAL, SIGN


@triton.jit
def unit(CODE: tl.constexpr):
    """What an operand's weights must be multiplied by to be codes."""
    return 0.5 if CODE == SIGN or CODE == CONSTANT else 1.0


@triton.jit
def plane_words(plane, row, word, words, WHOLE: tl.constexpr):
    """Words [ROWS, WORDS] of a stored plane, 0 past a row's end; row int64 [ROWS, 1], word [1, WORDS]."""
    if WHOLE:
        found = tl.load(plane + row * words + word)
    else:
        found = tl.load(plane + row * words + word, mask=word < words, other=0)
    return found.to(tl.uint32, bitcast=True)


@triton.jit
def pick(a, b, mask):
    """Bits of `a` where the mask is set and of `b` elsewhere."""
    return ((a ^ b) & mask) ^ b


@triton.jit
def bit_operand(keep, sign, DTYPE: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words [ROWS, WORDS] -> +-2.0 and 0 of a 16-bit float dtype [ROWS, 32 * WORDS]."""
    # keep and sign of pair 2f + q side by side at bits 2f and 2f + 1 of each half: two words of fields, one for each q
    even, odd = pick(keep, sign << 1, 0x55555555), pick(keep >> 1, sign, 0x55555555)
    fields = tl.join(even, odd)
    # 2^(14 - 2f) moves field f under the mask; made from a float's bits, or the compiler turns the product, which has
    # a pipe of its own, into a shift on the busier one
    f = tl.arange(0, 8)[None, None, :, None]
    power = ((141 - 2 * f) << 23).to(tl.float32, bitcast=True).to(tl.uint32)
    pairs = tl.reshape((fields[:, :, None, :] * power) & 0xC000C000, (ROWS, 16 * WORDS))
    low = pairs.to(tl.int16)
    high = (pairs >> 16).to(tl.int16)
    return tl.reshape(tl.join(low, high), (ROWS, 32 * WORDS)).to(DTYPE, bitcast=True)


@triton.jit
def byte_operand(keep, values, normal_table, CODE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
                 WORDS: tl.constexpr):  # fmt: skip
    """Keep words [ROWS, WORDS] and bytes [ROWS, 32 * WORDS] -> codes of a dtype."""
    codes = tl.load(normal_table + values) if CODE == NORMAL else (2 * values - 255).to(tl.float32)
    bit = (tl.arange(0, 16)[None, None, :, None] + 16 * tl.arange(0, 2)[None, None, None, :]).to(tl.uint32)
    kept = tl.reshape((keep[:, :, None, None] >> bit) & 1, (ROWS, 32 * WORDS))
    return tl.where(kept != 0, codes, 0.0).to(DTYPE)
