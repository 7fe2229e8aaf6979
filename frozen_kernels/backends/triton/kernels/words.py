"""Words of weight format 1: the generator, the partition and the planes, stored or generated.

A block is `ROWS` rows by `WORDS` words of 32 columns. Which plane is stored and which is generated follows from the
pointers: `keep` None means that the keep words come from the partition and the supermask, `draw` None that signs or
bytes come from the generator. All words are uint32, element offsets int64.
"""

import triton
import triton.language as tl

# purposes of the generator
SIGN_PURPOSE = tl.constexpr(0)
BYTE_PURPOSE = tl.constexpr(1)
PARTITION_PURPOSE = tl.constexpr(16)
SCORE_PURPOSE = tl.constexpr(32)
SEARCH_PURPOSE = tl.constexpr(33)

CHUNK_WORDS = tl.constexpr(32)
ONES = tl.constexpr(0xFFFFFFFF)


@triton.jit
def philox(key0, key1, c0, c1, c2, c3):
    """Philox4x32-10 of uint32 counters of any broadcastable shapes; four words."""
    # 64-bit products: one wide multiply on the GPU where mul and mulhi are two
    m0 = tl.full((), 0xD2511F53, tl.uint64)
    m1 = tl.full((), 0xCD9E8D57, tl.uint64)
    w0 = tl.full((), 0x9E3779B9, tl.uint32)
    w1 = tl.full((), 0xBB67AE85, tl.uint32)
    for i in tl.static_range(10):
        a = c0.to(tl.uint64) * m0
        b = c2.to(tl.uint64) * m1
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ key0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ key1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        if i < 9:
            key0 = key0 + w0
            key1 = key1 + w1
    return c0, c1, c2, c3


@triton.jit
def header_word(header, index: tl.constexpr):
    return tl.load(header + index).to(tl.uint32, bitcast=True)


@triton.jit
def interleave(x0, x1, x2, x3, ROWS: tl.constexpr, CALLS: tl.constexpr):
    """The four words of every call side by side: [ROWS, CALLS] each -> [ROWS, 4 * CALLS]."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (ROWS, 4 * CALLS))


@triton.jit
def generated(header, purpose, row, first, ROWS: tl.constexpr, CALLS: tl.constexpr):
    """The words [ROWS, 4 * CALLS] of the calls with counters `first` and up; row [ROWS, 1]."""
    call = (first + tl.arange(0, CALLS)[None, :]).to(tl.uint32)
    key0 = header_word(header, 0)
    key1 = header_word(header, 1)
    x0, x1, x2, x3 = philox(key0, key1, call, row.to(tl.uint32), purpose, header_word(header, 2))
    return interleave(x0, x1, x2, x3, ROWS, CALLS)


@triton.jit
def versioned(header, purpose: tl.constexpr):
    """The counter word of a purpose that new generations draw anew."""
    return (header_word(header, 3) << 8) | purpose


@triton.jit
def signs_of(header, row, word0, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The sign words [ROWS, WORDS]; a call makes four, so `word0` is a multiple of four."""
    return generated(header, versioned(header, SIGN_PURPOSE), row, word0 // 4, ROWS, WORDS // 4)


@triton.jit
def bytes_of(header, row, call, ROWS: tl.constexpr, CALLS: tl.constexpr):
    """The bytes int32 [ROWS, 16 * CALLS] of the columns from 16 * `call`."""
    fours = generated(header, versioned(header, BYTE_PURPOSE), row, call, ROWS, CALLS)
    shift = (8 * tl.arange(0, 4)[None, None, :]).to(tl.uint32)
    return tl.reshape((fours[:, :, None] >> shift) & 255, (ROWS, 16 * CALLS)).to(tl.int32)


@triton.jit
def column_bits():
    """The bit of each of a word's 32 columns, uint32 [1, 1, 32]."""
    column = tl.arange(0, 32)[None, None, :]
    return ((column >> 1) | ((column & 1) << 4)).to(tl.uint32)


@triton.jit
def columns_of(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """0 or 1 of each column, uint32 [ROWS, 32 * WORDS]."""
    return tl.reshape((words[:, :, None] >> column_bits()) & 1, (ROWS, 32 * WORDS))


@triton.jit
def words_of(bits, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The inverse of `columns_of`, of int1."""
    placed = tl.reshape(bits.to(tl.uint32), (ROWS, WORDS, 32)) << column_bits()
    return tl.sum(placed, 2).to(tl.uint32)


@triton.jit
def valid_bits(word, cols):
    """The bits of a word that belong to columns below `cols`."""
    left = tl.minimum(tl.maximum(cols - word * 32, 0), 32)
    even = ((left + 1) // 2).to(tl.uint32)
    odd = (left // 2).to(tl.uint32)
    one = tl.full((), 1, tl.uint32)
    return ((one << even) - 1) | (((one << odd) - 1) << 16)


@triton.jit
def at_least(so_far, plane, tau, bit):
    """One step of `u >= tau` on 32 columns at once, from the least significant bit upwards."""
    zero_bit = ((tau >> bit) & 1) - 1  # all ones where the threshold's bit is 0
    return (so_far & plane) | (zero_bit & (so_far | plane))


@triton.jit
def partition_words(header, row, word, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words of `u >= tau_prune` and of `u >= tau_freeze`."""
    key0 = header_word(header, 0)
    key1 = header_word(header, 1)
    stream = header_word(header, 2)
    tau_prune = header_word(header, 4)
    tau_freeze = header_word(header, 5)
    # trailing zero bits common to both thresholds cannot change the comparison: their calls are not made
    used = (tau_prune | tau_freeze) & 0xFFFF
    some = (used != 0).to(tl.int32)
    calls = some + ((used & 0x0FFF) != 0).to(tl.int32) + ((used & 0x00FF) != 0).to(tl.int32)
    calls = calls + ((used & 0x000F) != 0).to(tl.int32)
    unpruned = tl.full((ROWS, WORDS), 0xFFFFFFFF, tl.uint32)
    free = tl.full((ROWS, WORDS), 0xFFFFFFFF, tl.uint32)
    for i in range(calls):
        call = (calls - 1 - i).to(tl.uint32)
        x0, x1, x2, x3 = philox(key0, key1, word, row, call + PARTITION_PURPOSE, stream)
        low = 12 - 4 * call  # significance of the call's last plane
        unpruned = at_least(unpruned, x3, tau_prune, low)
        unpruned = at_least(unpruned, x2, tau_prune, low + 1)
        unpruned = at_least(unpruned, x1, tau_prune, low + 2)
        unpruned = at_least(unpruned, x0, tau_prune, low + 3)
        free = at_least(free, x3, tau_freeze, low)
        free = at_least(free, x2, tau_freeze, low + 1)
        free = at_least(free, x1, tau_freeze, low + 2)
        free = at_least(free, x0, tau_freeze, low + 3)
    # a threshold of 65536 is above every u, whatever its low 16 bits say
    return unpruned & ((tau_prune >> 16) - 1), free & ((tau_freeze >> 16) - 1)


@triton.jit
def free_and_locked(header, cols, row, word, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words of the free and of the locked columns below `cols`; row int64 [ROWS, 1], word int64 [1, WORDS]."""
    unpruned, free = partition_words(header, row.to(tl.uint32), word.to(tl.uint32), ROWS, WORDS)
    valid = valid_bits(word, cols)
    free = free & valid
    return free, unpruned & (free ^ ONES) & valid


@triton.jit
def pairs_of(words):
    """[ROWS, WORDS] -> [ROWS, WORDS, 2, 2, 2, 2]: the bits of columns 2j and 2j + 1 at bits 0 and 16, j in order."""
    # joined and not broadcast: a thread makes all pairs of its words, where it would else make the words of its pairs
    words = tl.join(words, words >> 8)
    words = tl.join(words, words >> 4)
    words = tl.join(words, words >> 2)
    return tl.join(words, words >> 1) & 0x00010001


@triton.jit
def partition_draws(header, row, word, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The 16-bit draw `u` of each column, uint32 [ROWS, 32 * WORDS]."""
    key0 = header_word(header, 0)
    key1 = header_word(header, 1)
    stream = header_word(header, 2)
    u = tl.zeros((ROWS, WORDS, 2, 2, 2, 2), tl.uint32)  # of two columns each
    for call in range(4):
        purpose = tl.full((), PARTITION_PURPOSE, tl.uint32) + call
        x0, x1, x2, x3 = philox(key0, key1, word.to(tl.uint32), row.to(tl.uint32), purpose, stream)
        u = (u << 4) | (pairs_of(x0) << 3) | (pairs_of(x1) << 2) | (pairs_of(x2) << 1) | pairs_of(x3)
    return tl.reshape(tl.join(u & 0xFFFF, u >> 16), (ROWS, 32 * WORDS))


@triton.jit
def byte_totals(word):
    """Byte i of the result: set bits of the word in its bytes 0 to i."""
    n = word - ((word >> 1) & 0x55555555)
    n = (n & 0x33333333) + ((n >> 2) & 0x33333333)
    n = (n + (n >> 4)) & 0x0F0F0F0F
    return n * 0x01010101


@triton.jit
def move_mask(skip):
    """Bit k of every byte: parity of `skip` over bits 0 to k of that byte."""
    skip = skip ^ ((skip << 1) & 0xFEFEFEFE)
    skip = skip ^ ((skip << 2) & 0xFCFCFCFC)
    return skip ^ ((skip << 4) & 0xF0F0F0F0)


@triton.jit
def moves(mask):
    """The set bits of `mask`, packed towards bit 0 of their byte, that move by 1, by 2 and by 4 on the way."""
    packed = mask
    gaps = ((mask ^ ONES) << 1) & 0xFEFEFEFE  # below a bit, the number of clear mask bits says how far it moves
    odd = move_mask(gaps)
    move1 = odd & packed
    packed = (packed ^ move1) | (move1 >> 1)
    gaps = gaps & (odd ^ ONES)
    odd = move_mask(gaps)
    move2 = odd & packed
    packed = (packed ^ move2) | (move2 >> 2)
    gaps = gaps & (odd ^ ONES)
    return move1, move2, move_mask(gaps) & packed


@triton.jit
def deposit(run, mask, totals):
    """PDEP: the low bits of `run`, in order, on the set bits of `mask`; `totals` is byte_totals(mask)."""
    # each byte of the mask takes its own part of the run, then three log steps spread it inside the byte
    spread = (run & 0xFF) | (((run >> (totals & 0xFF)) & 0xFF) << 8)
    spread = spread | (((run >> ((totals >> 8) & 0xFF)) & 0xFF) << 16) | ((run >> ((totals >> 16) & 0xFF)) << 24)
    move1, move2, move4 = moves(mask)
    spread = (spread & (move4 ^ ONES)) | ((spread << 4) & move4)
    spread = (spread & (move2 ^ ONES)) | ((spread << 2) & move2)
    spread = (spread & (move1 ^ ONES)) | ((spread << 1) & move1)
    return spread & mask


@triton.jit
def extract(word, mask, totals):
    """PEXT: the bits of `word` at the set bits of `mask`, in order from bit 0; `totals` is byte_totals(mask)."""
    move1, move2, move4 = moves(mask)
    packed = word & mask
    moving = packed & move1
    packed = (packed ^ moving) | (moving >> 1)
    moving = packed & move2
    packed = (packed ^ moving) | (moving >> 2)
    moving = packed & move4
    packed = (packed ^ moving) | (moving >> 4)
    run = (packed & 0xFF) | (((packed >> 8) & 0xFF) << (totals & 0xFF))
    return run | (((packed >> 16) & 0xFF) << ((totals >> 8) & 0xFF)) | ((packed >> 24) << ((totals >> 16) & 0xFF))


@triton.jit
def supermask_run(supermask, supermask_bytes, position):
    """32 bits of the stream from any bit position; the stream has no padding, so what lies past its end reads as 0."""
    first = position >> 3
    window = tl.zeros_like(position).to(tl.uint64)
    for i in tl.static_range(5):
        byte = tl.load(supermask + first + i, mask=first + i < supermask_bytes, other=0)
        window = window | (byte.to(tl.uint64) << (8 * i))
    return (window >> (position & 7).to(tl.uint64)).to(tl.uint32)


@triton.jit
def runs(free, position):
    """Where each word's run of the stream starts, byte_totals(free), and the position behind the block."""
    totals = byte_totals(free)
    count = (totals >> 24).to(tl.int64)
    return position + tl.cumsum(count, 1) - count, totals, position + tl.sum(count, 1)[:, None]


@triton.jit
def kept_words(supermask, supermask_bytes, free, position):
    """The stream's bits on the free columns, and the position behind the block."""
    before, totals, after = runs(free, position)
    return deposit(supermask_run(supermask, supermask_bytes, before), free, totals), after


@triton.jit
def keep_words(
    header, supermask, supermask_bytes, keep, rows, cols, row, word, position, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """Keep words [ROWS, WORDS] and the stream position behind them; row int64 [ROWS, 1], word int64 [1, WORDS]."""
    if keep is None:
        free, locked = free_and_locked(header, cols, row, word, ROWS, WORDS)
        kept, position = kept_words(supermask, supermask_bytes, free, position)
        words = locked | kept
    else:
        inside = (row < rows) & (word * 32 < cols)
        stride = (cols + 31) // 32
        words = tl.load(keep + row * stride + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return words, position


@triton.jit
def sign_words(header, draw, rows, cols, row, word, ROWS: tl.constexpr, WORDS: tl.constexpr):
    if draw is None:
        # one call makes four words, so the tile starts at a multiple of four words
        first = tl.min(word, 1)[:, None] // 4
        words = generated(header, versioned(header, SIGN_PURPOSE), row, first, ROWS, WORDS // 4)
    else:
        inside = (row < rows) & (word * 32 < cols)
        stride = (cols + 31) // 32
        words = tl.load(draw + row * stride + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return words


@triton.jit
def stream_position(offsets, rows, cols, row, chunk, ROWS: tl.constexpr):
    """What a stream holds before (row, chunk), int64 [ROWS, 1]; rows past the end get 0, as all do without offsets."""
    if offsets is not None:
        per_row = (cols + CHUNK_WORDS * 32 - 1) // (CHUNK_WORDS * 32)
        start = tl.load(offsets + row * per_row + chunk, mask=row < rows, other=0)
    else:
        start = tl.zeros((ROWS, 1), tl.int64)
    return start
