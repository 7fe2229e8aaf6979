#include "lib/weights.h"

#include <string.h>

#include <algorithm>

#include "lib/error.h"
#include "lib/kernels.h"
#include "lib/sha256.h"

FK_KERNEL_TABLE(fk::LibraryKernels, library_kernels)

namespace fk::lib {

namespace {

// Bytes of keep planes where no limit is given: so many, and for each byte of the file. A few numbers in a file say how
// large planes are.
constexpr int64_t PLANES = int64_t{1} << 30, PLANES_PER_BYTE = 16;
constexpr int THREADS = 1;

long long ll(int64_t value) { return static_cast<long long>(value); }

int64_t words_of(const Record& record) { return (record.cols + 31) / 32; }

// The residency that a weight is in where `wanted` was asked for.
frozen_residency possible(const Record& record, frozen_residency wanted) {
  if (record.code == STORED_CODE) return FROZEN_PACKED;
  if (record.code == SIGNS_CODE || record.generations > 1) return FROZEN_PLANES;
  if (wanted == FROZEN_MASK || (wanted == FROZEN_SEED && record.coats == 1)) return wanted;
  return FROZEN_PLANES;
}

// What is made of a weight, beside what the file holds of it.
__int128 made_bytes(const Record& record, frozen_residency residency) {
  const __int128 plane = __int128{4} * record.rows * std::max<int64_t>(words_of(record), 1);
  const int64_t chunks = (words_of(record) + CHUNK_WORDS - 1) / CHUNK_WORDS;
  __int128 bytes = plane * record.coats + __int128{8} * record.rows * chunks;
  if (residency != FROZEN_PLANES || record.code == CONSTANT_CODE) return bytes;
  const bool signs = record.code == SIGN_CODE || record.code == SIGNS_CODE;
  return bytes + (signs ? plane : __int128{record.rows} * record.cols);
}

void check_bytes(const std::vector<Record>& records, frozen_residency wanted, int64_t most_bytes) {
  __int128 bytes = 0;
  for (const Record& record : records) {
    bytes += made_bytes(record, possible(record, wanted));
    if (bytes > most_bytes) {
      refuse("%s: with it, weights take more than the %lld bytes that most_bytes allows", shown(record.name).c_str(),
             ll(most_bytes));
    }
  }
}

void check_planes(const std::vector<Record>& records, int64_t file_bytes) {
  const int64_t most = PLANES + PLANES_PER_BYTE * std::min(file_bytes, int64_t{1} << 50);
  __int128 planes = 0;
  for (const Record& record : records) {
    planes += __int128{4} * record.rows * std::max<int64_t>(words_of(record), 1) * record.coats;
    if (planes > most) {
      refuse("%s: keep planes of more than %lld bytes, which a file of %lld bytes may not ask for",
             shown(record.name).c_str(), ll(most), ll(file_bytes));
    }
  }
}

Block<uint8_t> take(Container& container, const Record& record, const char* end) {
  Entry* const entry = const_cast<Entry*>(container.find(record.name + "." + end));
  return entry ? std::move(entry->data) : Block<uint8_t>();
}

Block<float> as_floats(Block<uint8_t> from) {
  Block<float> to;
  to.count = from.count / 4;
  to.memory.reset(reinterpret_cast<float*>(from.memory.release()));
  return to;
}

// Counts of the partition, then the keep plane and its hash, compared with the record.
void regenerate(Weight& weight) {
  const Record& record = weight.record;
  const std::string called = shown(record.name);
  weight.keep = Block<uint32_t>(record.rows * words_of(record));
  Frozen f = weight.frozen();
  f.keep = nullptr;
  f.supermask = weight.supermask.data();
  f.supermask_bytes = weight.supermask.count;
  weight.offsets = Block<int64_t>(record.rows * f.chunks() + 1);
  memset(weight.offsets.data(), 0, static_cast<size_t>(weight.offsets.bytes()));
  active_library_kernels().offsets(f, weight.offsets.data(), THREADS);
  f.offsets = weight.offsets.data();
  const int64_t free = f.offsets[weight.offsets.count - 1];
  // The supermask has as many bits as the record says: a kernel may read it only where the seed says the same.
  if (free != record.free) {
    refuse("%s: free is %lld, the seed gives %lld", called.c_str(), ll(record.free), ll(free));
  }
  active_library_kernels().keep_plane(f, weight.keep.data(), THREADS);
  const uint8_t* const plane = reinterpret_cast<const uint8_t*>(weight.keep.data());
  const int64_t locked =
      count_bits(plane, weight.keep.bytes()) - count_bits(weight.supermask.data(), weight.supermask.count);
  if (locked != record.locked) {
    refuse("%s: locked is %lld, the seed gives %lld", called.c_str(), ll(record.locked), ll(locked));
  }
  Sha256 hash;
  hash.add(plane, static_cast<size_t>(weight.keep.bytes()));
  const std::string found = hash.hex();
  if (found != record.keep_sha256) {
    refuse("%s: keep_sha256 is %s, the regenerated keep plane has %s", called.c_str(), record.keep_sha256.c_str(),
           found.c_str());
  }
}

// Where the kept values of each (row, chunk) begin.
void count_values(Weight& weight) {
  const int64_t words = words_of(weight.record), chunks = (words + CHUNK_WORDS - 1) / CHUNK_WORDS;
  int64_t total = 0, *out = weight.offsets.data();
  for (int64_t row = 0; row < weight.record.rows; ++row) {
    const uint32_t* const plane = weight.keep.data() + row * words;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      *out++ = total;
      const int64_t end = std::min((chunk + 1) * CHUNK_WORDS, words);
      for (int64_t w = chunk * CHUNK_WORDS; w < end; ++w) total += __builtin_popcount(plane[w]);
    }
  }
  *out = total;
}

bool bit_of(const Block<uint8_t>& stream, int64_t i) { return stream.data()[i / 8] >> i % 8 & 1; }

// A plane whose bits at the set positions of `where` are those of a stream, in its order; others are 0.
Block<uint32_t> deposited(const Block<uint32_t>& where, const Block<uint8_t>& stream) {
  Block<uint32_t> plane(where.count);
  int64_t next = 0;
  for (int64_t i = 0; i < where.count; ++i) {
    uint32_t found = 0;
    for (uint32_t rest = where.data()[i]; rest; rest &= rest - 1) {
      if (bit_of(stream, next++)) found |= rest & -rest;
    }
    plane.data()[i] = found;
  }
  return plane;
}

void make_coats(Container& container, Weight& weight) {
  const Block<uint32_t>* before = &weight.keep;
  weight.coats.reserve(static_cast<size_t>(weight.record.coats - 1));
  for (int64_t coat = 2; coat <= weight.record.coats; ++coat) {
    const std::string end = "coat" + std::to_string(coat);
    weight.coats.push_back(deposited(*before, take(container, weight.record, end.c_str())));
    before = &weight.coats.back();
  }
}

void draw_planes(Weight& weight) {
  const Record& record = weight.record;
  const Frozen f = weight.frozen();
  if (record.code == SIGN_CODE) {
    weight.sign = Block<uint32_t>(record.rows * words_of(record));
    active_library_kernels().sign_plane(f, weight.sign.data(), THREADS);
  } else if (record.code != CONSTANT_CODE) {
    weight.bytes = Block<uint8_t>(record.rows * record.cols);
    active_library_kernels().byte_plane(f, weight.bytes.data(), THREADS);
  }
}

// Draws free weights again, each with the generation that it has of its own.
void draw_generations(Weight& weight, const Block<uint8_t>& numbers) {
  const Record& record = weight.record;
  const Frozen f = weight.frozen();
  const int64_t plane = record.free / 8 + (record.free % 8 != 0), planes = plane ? numbers.count / plane : 0;
  int64_t next = 0;
  for (int64_t row = 0; row < record.rows; ++row) {
    const uint32_t r = static_cast<uint32_t>(row);
    for (int64_t w = 0; w < f.words; ++w) {
      for (int bit = 0; bit < 32; ++bit) {  // stream order is that of the bits
        const int64_t k = 32 * w + column_of_bit(bit);
        if (k >= record.cols) continue;
        const uint32_t u = partition_draw(k, r, f.stream, f.key0, f.key1);
        if (partition_of(u, f.tau_prune, f.tau_freeze) != 0) continue;
        uint32_t generation = 0;
        for (int64_t i = 0; i < planes; ++i) {
          generation |= static_cast<uint32_t>(numbers.data()[i * plane + next / 8] >> next % 8 & 1) << i;
        }
        ++next;
        if (!generation) continue;
        if (record.code == SIGN_CODE) {
          const uint32_t drawn = sign_word(w, r, f.stream, generation, f.key0, f.key1) & (1u << bit);
          uint32_t& word = weight.sign.data()[row * f.words + w];
          word = (word & ~(1u << bit)) | drawn;
        } else {
          weight.bytes.data()[row * record.cols + k] =
              static_cast<uint8_t>(draw_byte(k, r, f.stream, generation, f.key0, f.key1));
        }
      }
    }
  }
}

Weight make_weight(Container& container, const Record& record, frozen_residency wanted) {
  Weight weight{};
  weight.record = record;
  weight.residency = possible(record, wanted);
  weight.supermask = take(container, record, "supermask");
  weight.gain = as_floats(take(container, record, "gain"));
  regenerate(weight);
  if (weight.residency == FROZEN_SEED) {
    weight.keep = Block<uint32_t>();
    return weight;
  }
  // Of other weights a tensor of this name is an ordinary one.
  if (record.code == SIGNS_CODE || (record.code == STORED_CODE && record.value_dtype == INT8))
    weight.row_scale = as_floats(take(container, record, "row_scale"));
  if (record.code == STORED_CODE) {
    weight.values = take(container, record, "values");
    count_values(weight);
  } else {
    weight.offsets = Block<int64_t>();
  }
  weight.supermask = Block<uint8_t>();
  if (record.code == SIGNS_CODE) {
    weight.sign = deposited(weight.keep, take(container, record, "signs"));
  } else if (weight.residency == FROZEN_PLANES) {
    draw_planes(weight);
    if (record.generations > 1) draw_generations(weight, take(container, record, "generation"));
  }
  make_coats(container, weight);
  return weight;
}

}  // namespace

Frozen Weight::frozen(size_t coat) const {
  Frozen f{};
  f.rows = record.rows;
  f.cols = record.cols;
  f.words = words_of(record);
  f.code = record.code == SIGNS_CODE ? static_cast<int>(SIGN_CODE) : record.code;
  f.key0 = static_cast<uint32_t>(record.seed);
  f.key1 = static_cast<uint32_t>(record.seed >> 32);
  f.stream = static_cast<uint32_t>(record.stream);
  f.generation = static_cast<uint32_t>(record.generation);
  f.tau_prune = static_cast<uint32_t>(record.tau_prune);
  f.tau_freeze = static_cast<uint32_t>(record.tau_freeze);
  f.scale = record.scale;
  f.keep = coat ? coats[coat - 1].data() : keep.data();
  f.sign = sign.data();
  f.bytes = bytes.data();
  f.supermask = supermask.data();
  f.supermask_bytes = supermask.count;
  f.offsets = offsets.data();
  f.values = values.data();
  f.value_dtype = record.value_dtype;
  if (record.code == STORED_CODE && record.value_dtype == INT8) f.row_scale = row_scale.data();
  return f;
}

int64_t Weight::held_bytes() const {
  int64_t bytes_held = supermask.bytes() + bytes.bytes() + values.bytes() + offsets.bytes() + keep.bytes() +
                       sign.bytes() + row_scale.bytes() + gain.bytes();
  for (const Block<uint32_t>& coat : coats) bytes_held += coat.bytes();
  return bytes_held;
}

std::vector<Weight> make_weights(Container& container, frozen_residency residency, int64_t most_bytes) {
  const std::vector<Record> records = read_records(container);
  if (most_bytes) {
    check_bytes(records, residency, most_bytes);
  } else {
    check_planes(records, container.file_bytes);
  }
  std::vector<Weight> weights;
  for (const Record& record : records) weights.push_back(make_weight(container, record, residency));
  // What belongs to a weight has left; what is left is ordinary.
  std::vector<Entry> ordinary;
  for (Entry& entry : container.tensors) {
    if (entry.data.memory) ordinary.push_back(std::move(entry));
  }
  container.tensors = std::move(ordinary);
  return weights;
}

}  // namespace fk::lib
