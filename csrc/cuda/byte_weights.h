// Weights as signed bytes of operand A of mma.m16n8k32: the decoders of the kernel in bytes.h.
//
// Lane 4 group + place has rows `group` and `group` + 8 of a tile of 16 rows, and 128 columns of a slice. The order of
// columns inside an mma is free as long as both operands have the same. Columns past the end have digits of zero, so
// that any weights may stand there: loads are moved back to the row's last words.
#pragma once
#include "cuda/digits.h"
#include "cuda/draws.h"

namespace fk::cuda::digits {

// Where a tile begins: its first row, and its slice of columns.
struct Tile {
  int row, slice;
  bool there;
};

// What a lane is, for all tiles. Without signs, so that divisions are shifts.
struct Lane {
  uint32_t number, place;
  int rows[2];  // in a tile; in a layer with fewer rows than a tile the last row stands for those that lack
  FK_DEVICE Lane(const Product& p, uint32_t number) : number(number), place(number % 4) {
    const int group = static_cast<int>(number / 4), last = p.rows - 1;
    rows[0] = min(group, last), rows[1] = min(group + 8, last);
  }
};

FK_DEVICE uint4 words_at(const Product& p, const uint32_t* plane, int row, int word) {
  return load_words(plane + static_cast<uint32_t>(row * p.words + min(word, p.words - 4)));
}
template <int PAIRS>
FK_DEVICE void clear(int (&sums)[PAIRS][4]) {
  FK_UNROLL for (int i = 0; i < 4 * PAIRS; ++i) sums[i / 4][i % 4] = 0;
}
// One mma for each pair of pixels, with the lower or upper eight columns of a chunk.
template <int PAIRS>
FK_DEVICE void multiply_chunk(int (&sums)[PAIRS][4], const uint32_t (&weights)[4], const Inputs<PAIRS>& inputs,
                              int chunk, int part) {
  FK_UNROLL for (int pair = 0; pair < PAIRS; ++pair) {
    const uint4& bytes = inputs.bytes[pair][chunk];
    multiply_bytes(sums[pair], weights, part ? bytes.z : bytes.x, part ? bytes.w : bytes.y);
  }
}

// Sign and constant codes. A lane has words 4 place to 4 place + 3 of a slice, which are those of one generator call.
//
// A weight -1, 0, 1 is a field of two bits, 1, 2, 3, and four fields are a byte. One AND leaves a field where it is, so
// that the sums of the four are apart, in units of 1, 4, 16 and 64; with its top bit inverted the highest is -64, 0,
// 64. What the others have too much, twice the inputs, is subtracted beforehand.
template <bool DRAWN, int PAIRS>
struct SignWeights {
  static constexpr Order ORDER = FIELDS;
  static constexpr int TIMES = 64;
  static constexpr int TABLE_BYTES = 0;
  const Product& p;
  const Lane& lane;
  const Draws draws;
  uint4 keep[2], sign[2];  // of the tile that comes
  uint4 column;            // of the draws
  int surplus[PAIRS][4];

  FK_DEVICE SignWeights(const Product& p, const Lane& lane, const uint8_t*)
      : p(p), lane(lane), draws(p.header, SIGN_PURPOSE) {
    sign[0] = sign[1] = make_uint4(0, 0, 0, 0);
  }
  FK_DEVICE uint32_t chunk_of(uint32_t i) const { return 8 * lane.place + i; }

  FK_DEVICE void fetch(const Tile& tile) {
    if (!tile.there) return;
    const int word = tile.slice * SLICE_WORDS + static_cast<int>(4 * lane.place);
    FK_UNROLL for (int half = 0; half < 2; ++half) {
      keep[half] = words_at(p, p.keep, tile.row + lane.rows[half], word);
      if (!DRAWN && p.sign) sign[half] = words_at(p, p.sign, tile.row + lane.rows[half], word);
    }
  }

  FK_DEVICE void begin_slice(const Inputs<PAIRS>& inputs, int slice, uint8_t*) {
    if (DRAWN) column = draws.begin_column(static_cast<uint32_t>(slice) * (SLICE_WORDS / 4) + lane.place);
    clear(surplus);
    const uint32_t minus_128[4] = {0x80808080u, 0x80808080u, 0x80808080u, 0x80808080u};
    FK_UNROLL for (int i = 0; i < 2 * LANE_CHUNKS; ++i) {
      if (i % 4 < 3) multiply_chunk(surplus, minus_128, inputs, i / 2, i % 2);
    }
  }

  // Sums of a tile, TIMES times; fetches the next tile's words.
  FK_DEVICE void multiply(const Inputs<PAIRS>& inputs, const Tile& tile, const Tile& next, int (&sums)[PAIRS][4]) {
    uint32_t fields[4][2][2];
    FK_UNROLL for (int half = 0; half < 2; ++half) {
      uint4 signs = sign[half];
      if (DRAWN) signs = draws.finish(column, draws.begin_row(static_cast<uint32_t>(tile.row + lane.rows[half])));
      FK_UNROLL for (int word = 0; word < 4; ++word) {
        const uint32_t kept = word_of(keep[half], word);
        const uint32_t not_negative = logic<~(TABLE_A & TABLE_B) & 0xFF>(kept, word_of(signs, word), 0);
        fields[word][0][half] = pick(kept, not_negative << 1, 0x55555555u);
        fields[word][1][half] = pick(kept >> 1, not_negative, 0x55555555u);
      }
    }
    fetch(next);
    int parts[3][PAIRS][4] = {};
    FK_UNROLL for (int i = 0; i < 4 * PAIRS; ++i) sums[i / 4][i % 4] = surplus[i / 4][i % 4];
    FK_UNROLL for (int word = 0; word < 4; ++word) {
      FK_UNROLL for (int field = 0; field < 4; ++field) {
        uint32_t weights[4];
        FK_UNROLL for (int j = 0; j < 4; ++j) {
          const uint32_t four = fields[word][j / 2][j % 2];
          weights[j] = field == 3 ? logic<(TABLE_A & TABLE_B) ^ TABLE_C>(four, 0xC0C0C0C0u, 0x80808080u)
                                  : four & 0x03030303u << 2 * field;
        }
        multiply_chunk(field == 3 ? sums : parts[field], weights, inputs, 2 * word + field / 2, field % 2);
      }
    }
    FK_UNROLL for (int i = 0; i < 4 * PAIRS; ++i) {
      const int pair = i / 4, j = i % 4;
      sums[pair][j] += parts[2][pair][j] * 4 + parts[1][pair][j] * 16 + parts[0][pair][j] * 64;
    }
  }
};

// Uniform and normal codes: a code is 2 h + 1 with h = b - 128 (uniform) or of a table (normal), and its sum is twice
// that of h over what is kept and once that of ones there, which a second mma makes of the mask.
//
// Drawn: a lane has words 4 place to 4 place + 3, as two chunks each. Of resident bytes two lanes have the two chunks
// of a word, so that a load of a warp reads whole sectors: chunk place % 2 of words 8 (place / 2) and following.
template <int CODE, bool DRAWN, int PAIRS>
struct ByteWeights {
  static constexpr Order ORDER = NATURAL;
  static constexpr int TIMES = 1;
  static constexpr int TABLE_BYTES = CODE == NORMAL_CODE ? 256 * 128 : 0;
  const Product& p;
  const Lane& lane;
  const Draws draws;
  const Table table;
  const uint8_t* columns;  // of the draws, by chunk
  // Of the tile that comes: drawn, all keep words; resident, what chunks 0 and 1 need.
  uint4 keep[2], bytes[2][2];

  FK_DEVICE ByteWeights(const Product& p, const Lane& lane, const uint8_t* table)
      : p(p), lane(lane), draws(p.header, BYTE_PURPOSE), table(table_at(table + 4 * lane.number)) {}
  FK_DEVICE uint32_t chunk_of(uint32_t i) const {
    return DRAWN ? 8 * lane.place + i : lane.place / 2 * 16 + 2 * i + lane.place % 2;
  }

  FK_DEVICE void fetch(const Tile& tile) {
    if (!tile.there) return;
    if constexpr (DRAWN) {
      const int word = tile.slice * SLICE_WORDS + static_cast<int>(4 * lane.place);
      keep[0] = words_at(p, p.keep, tile.row + lane.rows[0], word);
      keep[1] = words_at(p, p.keep, tile.row + lane.rows[1], word);
    } else {
      fetch_chunks(tile, 0);
    }
  }
  // Of chunks 2 i and 2 i + 1.
  FK_DEVICE void fetch_chunks(const Tile& tile, int i) {
    const int wanted = tile.slice * SLICE_WORDS + static_cast<int>(lane.place / 2 * 8) + 2 * i;
    const int word = min(wanted, p.words - 2), row_chunks = p.cols / CHUNK;
    FK_UNROLL for (int half = 0; half < 2; ++half) {
      const int row = tile.row + lane.rows[half];
      const uint2 words = load_two_words(p.keep + static_cast<uint32_t>(row * p.words + word));
      keep[half].x = words.x, keep[half].y = words.y;
      FK_UNROLL for (int j = 0; j < 2; ++j) {
        const int chunk = min(2 * (word + j) + static_cast<int>(lane.place % 2), row_chunks - 1);
        const uint32_t at = static_cast<uint32_t>(row * row_chunks + chunk);
        bytes[half][j] = load_words(reinterpret_cast<const uint32_t*>(p.bytes) + 4 * static_cast<int64_t>(at));
      }
    }
  }

  FK_DEVICE void begin_slice(const Inputs<PAIRS>&, int slice, uint8_t* stage) {
    if (!DRAWN) return;
    columns = stage;
    __syncwarp();
    *reinterpret_cast<uint4*>(stage + stage_at(0, lane.number)) =
        draws.begin_column(static_cast<uint32_t>(slice) * (SLICE / CHUNK) + lane.number);
    __syncwarp();
  }

  // Sums of a tile; fetches the next tile's words.
  FK_DEVICE void multiply(const Inputs<PAIRS>& inputs, const Tile& tile, const Tile& next, int (&sums)[PAIRS][4]) {
    uint2 rows[2];
    FK_UNROLL for (int half = 0; half < 2; ++half) {
      if (DRAWN) rows[half] = draws.begin_row(static_cast<uint32_t>(tile.row + lane.rows[half]));
    }
    int ones[PAIRS][4];
    clear(sums), clear(ones);
    uint32_t kept[2];
    uint4 fetched[2][2];
    FK_UNROLL for (int chunk = 0; chunk < LANE_CHUNKS; ++chunk) {
      if (chunk % 2 == 0) {
        FK_UNROLL for (int half = 0; half < 2; ++half) {
          kept[half] = kept_bits(keep[half], chunk / 2);
          fetched[half][0] = bytes[half][0], fetched[half][1] = bytes[half][1];
        }
        if (chunk == 6) fetch(next);
        if (chunk != 6 && !DRAWN) fetch_chunks(tile, chunk / 2 + 1);
      }
      uint4 drawn[2], column;
      if (DRAWN) column = *reinterpret_cast<const uint4*>(columns + stage_at(0, chunk_of(chunk)));
      FK_UNROLL for (int half = 0; half < 2; ++half) {
        drawn[half] = DRAWN ? draws.finish(column, rows[half]) : fetched[half][chunk % 2];
      }
      FK_UNROLL for (int part = 0; part < 2; ++part) {
        uint32_t weights[4], masks[4];
        FK_UNROLL for (int j = 0; j < 4; ++j) {
          const int group = 2 * part + j / 2;
          masks[j] = chunk % 2 ? kept_bytes<1>(kept[j % 2], group) : kept_bytes<0>(kept[j % 2], group);
          weights[j] = h_of(word_of(drawn[j % 2], group)) & masks[j];
        }
        multiply_chunk(sums, weights, inputs, chunk, part);
        multiply_chunk(ones, masks, inputs, chunk, part);
      }
    }
    // kept columns are -1 in a mask
    FK_UNROLL for (int i = 0; i < 4 * PAIRS; ++i) sums[i / 4][i % 4] = 2 * sums[i / 4][i % 4] - ones[i / 4][i % 4];
  }

  // Keep bits of chunks 2 i and 2 i + 1: those of a word, or the lane's halves of two words.
  FK_DEVICE uint32_t kept_bits(const uint4& words, int i) const {
    return DRAWN ? word_of(words, i) : permute(words.x, words.y, lane.place % 2 ? 0x7531u : 0x6420u);
  }
  // 0xFF for each kept one of columns 4 group to 4 group + 3 of a chunk: its bits, shifted to the top of their bytes.
  template <int SECOND>
  static FK_DEVICE uint32_t kept_bytes(uint32_t bits, int group) {
    constexpr uint32_t SELECTOR = DRAWN ? (SECOND ? 0xFDB9 : 0xECA8) : (SECOND ? 0xFEBA : 0xDC98);
    return permute<SELECTOR>(bits << (7 - 2 * group), bits << (6 - 2 * group));
  }
  // The h of four bytes.
  FK_DEVICE uint32_t h_of(uint32_t four) const {
    if constexpr (CODE == UNIFORM_CODE) {
      return four ^ 0x80808080u;
    } else {
      uint32_t h[4];
      FK_UNROLL for (int i = 0; i < 4; ++i) h[i] = look_up(table, four, 128u << 8 * i);
      return permute<0x5410>(permute<0x0040>(h[0], h[1]), permute<0x0040>(h[2], h[3]));
    }
  }
};

// The h of each byte, once for each bank of shared memory, so that the lanes of a warp look up without conflicts.
FK_DEVICE void fill_table(uint8_t* table, int warp, int warps, uint32_t lane) {
  for (uint32_t byte = warps * lane + warp; byte < 256; byte += 32 * warps) {
    const int h = (normal_code(byte) - 1) / 2;
    // each lane writes to another bank
    FK_UNROLL for (uint32_t i = 0; i < 32; ++i) reinterpret_cast<int*>(table)[32 * byte + (i + lane) % 32] = h;
  }
}

}  // namespace fk::cuda::digits
