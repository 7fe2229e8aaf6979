#include "lib/records.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "lib/error.h"
#include "lib/json.h"

namespace fk::lib {

namespace {

using std::string;

constexpr const char* CODE_NAMES[] = {"sign", "uniform", "normal", "constant", "stored", "signs"};
constexpr const char* VALUE_NAMES[] = {"float32", "bfloat16", "float16", "int8"};  // by DType
constexpr const char* VALUE_DTYPES[] = {"F32", "BF16", "F16", "I8"};
constexpr const char* FEATURES[] = {"stored", "signs", "coats", "generations", "gain"};  // as `requires` orders them
constexpr int64_t MOST_COATS = 255, MOST_GENERATIONS = 256, LONGEST_SHAPE = 64;

long long ll(int64_t value) { return static_cast<long long>(value); }

template <size_t N>
int place_of(const string& name, const char* const (&names)[N]) {
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
  }
  return -1;
}

// The fields of one record, with errors that name it and them.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {
    if (object.kind != Json::OBJECT) refuse("frozen_kernels.tensors: an element is no object");
    const Json* const name = object.find("name");
    if (!name || name->kind != Json::STRING || name->text.empty()) {
      refuse("frozen_kernels.tensors: a record without a name");
    }
    called_ = shown(name->text);
    if (name->text.find('\0') != string::npos) refuse("%s: a name with a zero byte, which C cannot ask for", called());
  }
  const char* called() const { return called_.c_str(); }
  const Json* find(const char* field) const { return object_.find(field); }
  const Json& get(const char* field) const {
    const Json* const found = object_.find(field);
    if (!found) refuse("%s: the field %s is missing", called(), field);
    return *found;
  }
  const string& text(const char* field) const {
    const Json& found = get(field);
    if (found.kind != Json::STRING) refuse("%s: %s is no string", called(), field);
    return found.text;
  }
  int64_t integer(const char* field, int64_t highest) const { return integer(get(field), field, highest); }
  int64_t integer(const Json& value, const char* field, int64_t highest) const {
    if (value.kind != Json::INTEGER || value.integer < 0 || value.integer > highest) {
      refuse("%s: %s is no integer from 0 to %lld", called(), field, ll(highest));
    }
    return value.integer;
  }
  std::vector<int64_t> integers(const char* field, int64_t highest, int64_t longest) const {
    const Json& list = get(field);
    if (list.kind != Json::ARRAY || static_cast<int64_t>(list.items.size()) > longest) {
      refuse("%s: %s is no list of at most %lld integers", called(), field, ll(longest));
    }
    std::vector<int64_t> found;
    for (const Json& item : list.items) found.push_back(integer(item, field, highest));
    return found;
  }
  void only_known() const {
    constexpr const char* known[] = {"name",  "shape",       "seed",       "stream", "generation", "code",
                                     "scale", "tau_prune",   "tau_freeze", "pruned", "locked",     "free",
                                     "kept",  "keep_sha256", "values",     "coats",  "coat_kept",  "generations"};
    for (const string& key : object_.keys) {
      if (place_of(key, known) < 0) refuse("%s: unknown field %s", called(), shown(key).c_str());
    }
  }

 private:
  const Json& object_;
  string called_;
};

uint64_t read_seed(const Fields& fields) {
  const string& text = fields.text("seed");
  uint64_t seed = 0;
  bool good = !text.empty() && text.size() <= 20 && (text[0] != '0' || text.size() == 1);
  for (const char c : text) {
    good = good && c >= '0' && c <= '9' && !__builtin_mul_overflow(seed, uint64_t{10}, &seed) &&
           !__builtin_add_overflow(seed, static_cast<uint64_t>(c - '0'), &seed);
  }
  if (!good) refuse("%s: seed is %s, no decimal number below 2^64", fields.called(), shown(text).c_str());
  return seed;
}

int nibble_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// [+-]0x<hex>[.<hex>][p<decimal>] that is a float32 of 0 or more. strtof would depend on the locale.
bool read_hex_float(const string& text, float& out) {
  const char* at = text.c_str();
  const bool negative = *at == '-';
  if (*at == '-' || *at == '+') ++at;
  if (at[0] != '0' || (at[1] != 'x' && at[1] != 'X')) return false;
  at += 2;
  uint64_t digits = 0;  // the number is digits * 2^exponent
  int64_t exponent = 0;
  for (int part = 0; part < 2; ++part) {
    int count = 0;
    for (; nibble_of(*at) >= 0; ++at) {
      if (++count > 32) return false;
      const int nibble = nibble_of(*at);
      if (digits >> 56) {
        if (nibble) return false;  // more digits than a float32 has
        if (part == 0) exponent += 4;
        continue;
      }
      digits = digits << 4 | static_cast<uint64_t>(nibble);
      if (part == 1) exponent -= 4;
    }
    if (part == 0 && !count) return false;
    if (part == 0 && *at == '.') {
      ++at;
    } else {
      break;
    }
  }
  if (*at == 'p' || *at == 'P') {
    ++at;
    const bool down = *at == '-';
    if (*at == '-' || *at == '+') ++at;
    int64_t by = 0;
    int count = 0;
    for (; *at >= '0' && *at <= '9'; ++at) {
      if (++count > 5) return false;
      by = 10 * by + (*at - '0');
    }
    if (!count) return false;
    exponent += down ? -by : by;
  }
  if (at != text.c_str() + text.size() || negative) return false;
  if (!digits) return out = 0.0f, true;
  while (!(digits & 1)) digits >>= 1, ++exponent;
  const int bits = 64 - __builtin_clzll(digits);
  if (bits > 24 || exponent < -149 || exponent + bits > 128) return false;
  out = ldexpf(static_cast<float>(digits), static_cast<int>(exponent));
  return true;
}

bool is_sha256(const string& text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

void read_shape(const Fields& fields, Record& record) {
  record.shape = fields.integers("shape", int64_t{1} << 34, LONGEST_SHAPE);
  if (record.shape.size() < 2) refuse("%s: shape has fewer than 2 dimensions", fields.called());
  record.rows = record.shape[0];
  int64_t positive = 1;
  record.cols = 1;
  for (size_t i = 1; i < record.shape.size(); ++i) {
    record.cols *= record.shape[i];
    positive *= std::max<int64_t>(record.shape[i], 1);
    if (positive > int64_t{1} << 34) break;
  }
  // A size of 0 does not let others be large: nothing here multiplies them unchecked.
  if (record.rows > int64_t{1} << 32 || positive > int64_t{1} << 34 ||
      __int128{record.rows} * record.cols >= __int128{1} << 60) {
    refuse("%s: shape %s is beyond 2^32 rows and 2^34 columns", fields.called(), shape_text(record.shape).c_str());
  }
}

void check_counts(const Fields& fields, Record& record) {
  const int64_t all = record.rows * record.cols;
  record.pruned = fields.integer("pruned", all);
  record.locked = fields.integer("locked", all);
  record.free = fields.integer("free", all);
  record.kept = fields.integer("kept", all);
  if (record.pruned > all - record.locked || record.pruned + record.locked != all - record.free) {
    refuse("%s: counts: pruned %lld + locked %lld + free %lld, the shape has %lld weights", fields.called(),
           ll(record.pruned), ll(record.locked), ll(record.free), ll(all));
  }
  if (record.kept < record.locked || record.kept > record.locked + record.free) {
    refuse("%s: kept: %lld is outside locked %lld to locked + free %lld", fields.called(), ll(record.kept),
           ll(record.locked), ll(record.locked + record.free));
  }
}

// What a weight that no seed draws must say.
void check_undrawn(const Fields& fields, const Record& record) {
  if (record.drawn()) return;
  if (record.seed || record.stream || record.generation || record.tau_prune || record.tau_freeze) {
    refuse("%s: seed, stream, generation, tau_prune and tau_freeze are 0 of a %s weight", fields.called(),
           CODE_NAMES[record.code]);
  }
  if (record.code == STORED_CODE && record.scale != 1.0f) {
    refuse("%s: scale: 1 of a stored weight, got %g", fields.called(), static_cast<double>(record.scale));
  }
}

void read_values(const Fields& fields, Record& record) {
  if ((fields.find("values") != nullptr) != (record.code == STORED_CODE)) {
    refuse("%s: values is a field of a stored weight and of no other", fields.called());
  }
  if (record.code != STORED_CODE) return;
  record.value_dtype = place_of(fields.text("values"), VALUE_NAMES);
  if (record.value_dtype < 0) {
    refuse("%s: values: float32, float16, bfloat16 or int8, got %s", fields.called(),
           shown(fields.text("values")).c_str());
  }
}

void read_coats(const Fields& fields, Record& record) {
  record.coats = 1;
  if (!fields.find("coats") != !fields.find("coat_kept")) {
    refuse("%s: coats comes with coat_kept or neither does", fields.called());
  }
  if (!fields.find("coats")) return;
  record.coats = fields.integer("coats", MOST_COATS);
  record.coat_kept = fields.integers("coat_kept", record.kept, MOST_COATS);
  if (record.coats < 2 || record.code == STORED_CODE) {
    refuse("%s: coats: 2 to %lld of a weight that is not stored, got %lld", fields.called(), ll(MOST_COATS),
           ll(record.coats));
  }
  if (static_cast<int64_t>(record.coat_kept.size()) != record.coats || record.coat_kept[0] != record.kept ||
      !std::is_sorted(record.coat_kept.rbegin(), record.coat_kept.rend())) {
    refuse("%s: coat_kept: %lld counts from kept %lld on that never rise", fields.called(), ll(record.coats),
           ll(record.kept));
  }
}

void read_generations(const Fields& fields, Record& record) {
  record.generations = 1;
  if (!fields.find("generations")) return;
  record.generations = fields.integer("generations", MOST_GENERATIONS);
  if (record.generations < 2) refuse("%s: generations: 2 to %lld", fields.called(), ll(MOST_GENERATIONS));
  if (!record.drawn() || record.code == CONSTANT_CODE || record.generation) {
    refuse("%s: generations are of drawn weights of code sign, uniform or normal with generation 0 in the header",
           fields.called());
  }
}

Record read_record(const Json& object) {
  const Fields fields(object);
  fields.only_known();
  Record record{};
  record.name = fields.text("name");
  read_shape(fields, record);
  record.seed = read_seed(fields);
  record.code = place_of(fields.text("code"), CODE_NAMES);
  if (record.code < 0) refuse("%s: unknown code %s", fields.called(), shown(fields.text("code")).c_str());
  record.keep_sha256 = fields.text("keep_sha256");
  if (!is_sha256(record.keep_sha256)) refuse("%s: keep_sha256 is no 64 lower-case hex digits", fields.called());
  record.stream = fields.integer("stream", (int64_t{1} << 32) - 1);
  record.generation = fields.integer("generation", (int64_t{1} << 24) - 1);
  record.tau_prune = fields.integer("tau_prune", FULL_THRESHOLD);
  record.tau_freeze = fields.integer("tau_freeze", FULL_THRESHOLD);
  if (record.tau_prune > record.tau_freeze) {
    refuse("%s: tau_prune %lld is above tau_freeze %lld", fields.called(), ll(record.tau_prune), ll(record.tau_freeze));
  }
  check_counts(fields, record);
  if (!read_hex_float(fields.text("scale"), record.scale)) {
    refuse("%s: scale is %s, no C99 hex float that is a float32 of 0 or more", fields.called(),
           shown(fields.text("scale")).c_str());
  }
  read_values(fields, record);
  check_undrawn(fields, record);
  read_coats(fields, record);
  read_generations(fields, record);
  return record;
}

void check_requires(const Container& container, std::vector<string>& named) {
  const Json list = parse_json(*container.find_metadata("frozen_kernels.requires"), "frozen_kernels.requires");
  if (list.kind != Json::ARRAY) refuse("frozen_kernels.requires is no list");
  for (const Json& feature : list.items) {
    if (feature.kind != Json::STRING) refuse("frozen_kernels.requires is no list of strings");
    if (place_of(feature.text, FEATURES) < 0) {
      fail(FROZEN_UNSUPPORTED, "unsupported feature %s: this library reads stored, signs, coats, generations and gain",
           shown(feature.text).c_str());
    }
    named.push_back(feature.text);
  }
}

std::vector<string> check_metadata(const Container& container) {
  const string* const format = container.find_metadata("frozen_kernels.format");
  if (!format) refuse("no ticket: its metadata has no frozen_kernels.format");
  if (*format != "1") {
    fail(FROZEN_UNSUPPORTED, "frozen_kernels.format is %s, this library reads '1'", shown(*format).c_str());
  }
  constexpr std::string_view prefix = "frozen_kernels.";
  constexpr const char* keys[] = {"format", "requires", "tensors", "digest"};
  for (const char* const key : keys) {
    if (!container.find_metadata(string(prefix) + key)) refuse("frozen_kernels.%s is missing", key);
  }
  std::vector<string> named;
  check_requires(container, named);
  for (const auto& [key, value] : container.metadata) {
    if (key.compare(0, prefix.size(), prefix) == 0 && place_of(key.substr(prefix.size()), keys) < 0) {
      refuse("metadata: unknown key %s", shown(key).c_str());
    }
  }
  const string found = content_digest(container), &said = *container.find_metadata("frozen_kernels.digest");
  if (found != said) refuse("the digest is %s, the contents give '%s'", shown(said).c_str(), found.c_str());
  return named;
}

int64_t stream_bytes(int64_t bits) { return bits / 8 + (bits % 8 != 0); }

// The tensor <record>.<end>, of this dtype and shape; null where it is missing and may be.
const Entry* checked(const Container& container, const Record& record, const char* end, const char* dtype,
                     const std::vector<int64_t>& shape, bool optional = false) {
  const string name = record.name + "." + end;
  const Entry* const found = container.find(name);
  if (!found && optional) return nullptr;
  if (!found) refuse("%s is missing", shown(name).c_str());
  if (!found->is(dtype, shape)) {
    refuse("%s: %s %s, expected %s %s", shown(name).c_str(), found->dtype, shape_text(found->shape).c_str(), dtype,
           shape_text(shape).c_str());
  }
  return found;
}

// A stream of so many bits, without any after its last; how many are set.
int64_t check_stream(const Entry& entry, const uint8_t* data, int64_t bits) {
  const int64_t bytes = stream_bytes(bits);
  if (bits % 8 && data[bytes - 1] >> bits % 8) {
    refuse("%s: bits are set after the last of %lld (last byte %d)", shown(entry.name).c_str(), ll(bits),
           data[bytes - 1]);
  }
  return count_bits(data, bytes);
}

void check_floats(const Entry* entry, bool positive) {
  if (!entry) return;
  const float* const values = reinterpret_cast<const float*>(entry->data.data());
  for (int64_t i = 0; i < entry->data.count / 4; ++i) {
    if (!isfinite(values[i]) || (positive && values[i] < 0)) {
      refuse("%s[%lld]: %sfinite, got %g", shown(entry->name).c_str(), ll(i), positive ? "0 or more and " : "",
             static_cast<double>(values[i]));
    }
  }
}

void check_coat_tensors(const Container& container, const Record& record) {
  for (int64_t coat = 2; coat <= record.coats; ++coat) {
    const int64_t before = record.coat_kept[static_cast<size_t>(coat - 2)];
    const string end = "coat" + std::to_string(coat);
    const Entry* const entry = checked(container, record, end.c_str(), "U8", {stream_bytes(before)});
    const int64_t found = check_stream(*entry, entry->data.data(), before);
    if (found != record.coat_kept[static_cast<size_t>(coat - 1)]) {
      refuse("%s: coat_kept says %lld, its bits are %lld", shown(entry->name).c_str(),
             ll(record.coat_kept[static_cast<size_t>(coat - 1)]), ll(found));
    }
  }
}

void check_generation_tensor(const Container& container, const Record& record) {
  if (record.generations == 1) return;
  const int planes = 64 - __builtin_clzll(static_cast<uint64_t>(record.generations - 1));
  const int64_t bytes = stream_bytes(record.free);
  const Entry* const entry = checked(container, record, "generation", "U8", {planes, bytes});
  for (int plane = 0; plane < planes; ++plane) {
    check_stream(*entry, entry->data.data() + plane * bytes, record.free);
  }
  int64_t highest = 0;
  for (int64_t i = 0; i < record.free; ++i) {
    int64_t number = 0;
    for (int plane = 0; plane < planes; ++plane) {
      number |= int64_t{entry->data.data()[plane * bytes + i / 8] >> i % 8 & 1} << plane;
    }
    highest = std::max(highest, number);
  }
  if (highest + 1 != record.generations) {
    refuse("%s: generations is %lld, its highest is %lld", shown(entry->name).c_str(), ll(record.generations),
           ll(highest));
  }
}

void check_tensors(const Container& container, const Record& record) {
  const Entry* const supermask = checked(container, record, "supermask", "U8", {stream_bytes(record.free)});
  const int64_t kept = record.locked + check_stream(*supermask, supermask->data.data(), record.free);
  if (kept != record.kept) {
    refuse("%s: kept is %lld, locked and supermask bits are %lld", shown(record.name).c_str(), ll(record.kept),
           ll(kept));
  }
  if (record.code == STORED_CODE) {
    checked(container, record, "values", VALUE_DTYPES[record.value_dtype], {record.kept});
    if (record.value_dtype == INT8) check_floats(checked(container, record, "row_scale", "F32", {record.rows}), true);
  }
  if (record.code == SIGNS_CODE) {
    const Entry* const signs = checked(container, record, "signs", "U8", {stream_bytes(record.kept)});
    check_stream(*signs, signs->data.data(), record.kept);
    check_floats(checked(container, record, "row_scale", "F32", {record.rows}, true), true);
  }
  check_coat_tensors(container, record);
  check_generation_tensor(container, record);
  if (record.has_gain) check_floats(checked(container, record, "gain", "F32", {record.rows}), false);
}

void check_features(const std::vector<Record>& records, const std::vector<string>& named) {
  bool used[5] = {};
  for (const Record& record : records) {
    used[0] |= record.code == STORED_CODE, used[1] |= record.code == SIGNS_CODE, used[2] |= record.coats > 1;
    used[3] |= record.generations > 1, used[4] |= record.has_gain;
  }
  std::vector<string> needed;
  for (int i = 0; i < 5; ++i) {
    if (used[i]) needed.push_back(FEATURES[i]);
  }
  if (needed == named) return;
  const auto listed = [](const std::vector<string>& names) {
    string text;
    for (const string& name : names) text += (text.empty() ? "" : ", ") + name;
    return "[" + text + "]";
  };
  refuse("frozen_kernels.requires: %.200s, its tensors need %.200s", listed(named).c_str(), listed(needed).c_str());
}

void check_apart(const std::vector<Record>& records) {
  std::vector<const Record*> sorted;
  for (const Record& record : records) sorted.push_back(&record);
  std::sort(sorted.begin(), sorted.end(), [](const Record* a, const Record* b) { return a->name < b->name; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i]->name == sorted[i - 1]->name) refuse("%s is listed twice", shown(sorted[i]->name).c_str());
  }
  const auto drawn_first = [](const Record* a, const Record* b) {
    if (a->drawn() != b->drawn()) return a->drawn();
    return std::pair(a->seed, a->stream) < std::pair(b->seed, b->stream);
  };
  std::sort(sorted.begin(), sorted.end(), drawn_first);
  for (size_t i = 1; i < sorted.size() && sorted[i]->drawn(); ++i) {
    const Record &a = *sorted[i - 1], &b = *sorted[i];
    if (a.seed == b.seed && a.stream == b.stream) {
      refuse("%s and %s have the same seed %llu and stream %lld", shown(a.name).c_str(), shown(b.name).c_str(),
             static_cast<unsigned long long>(a.seed), ll(a.stream));
    }
  }
}

}  // namespace

const char* code_name(int code) { return CODE_NAMES[code]; }

int64_t count_bits(const uint8_t* data, int64_t bytes) {
  int64_t count = 0;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    count += __builtin_popcountll(word);
  }
  for (int64_t i = 0; i < bytes; ++i) count += __builtin_popcount(data[i]);
  return count;
}

std::vector<Record> read_records(const Container& container) {
  const std::vector<string> named = check_metadata(container);
  const Json list = parse_json(*container.find_metadata("frozen_kernels.tensors"), "frozen_kernels.tensors");
  if (list.kind != Json::ARRAY || list.items.empty()) {
    refuse("frozen_kernels.tensors is no list that is not empty");
  }
  std::vector<Record> records;
  for (const Json& object : list.items) {
    records.push_back(read_record(object));
    records.back().has_gain = container.find(records.back().name + ".gain") != nullptr;
  }
  check_features(records, named);
  check_apart(records);
  for (const Record& record : records) check_tensors(container, record);
  for (const Entry& entry : container.tensors) {
    if (entry.dtype != std::string_view("BOOL")) continue;
    for (int64_t i = 0; i < entry.data.count; ++i) {
      if (entry.data.data()[i] > 1) {
        refuse("%s: a bool that is neither 0 nor 1, got %d", shown(entry.name).c_str(), entry.data.data()[i]);
      }
    }
  }
  return records;
}

}  // namespace fk::lib
