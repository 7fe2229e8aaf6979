#include "lib/container.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>
#include <new>

#include "lib/error.h"
#include "lib/json.h"
#include "lib/sha256.h"

namespace fk::lib {

namespace {

constexpr int64_t LARGEST_HEADER = 100000000;  // what the safetensors library reads at most, too
constexpr int64_t MOST_BYTES = int64_t{1} << 59;

struct Dtype {
  const char* name;
  int64_t bytes;
};
constexpr Dtype DTYPES[] = {{"F64", 8},  {"F32", 4}, {"F16", 2},     {"BF16", 2},   {"I64", 8}, {"I32", 4},
                            {"I16", 2},  {"I8", 1},  {"U64", 8},     {"U32", 4},    {"U16", 2}, {"U8", 1},
                            {"BOOL", 1}, {"C64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

class FileSource : public Source {
 public:
  explicit FileSource(const char* path) {
    struct stat found;
    // A pipe would wait to be opened.
    if (stat(path, &found)) fail(FROZEN_IO, "%.500s: %s", path, strerror(errno));
    if ((found.st_mode & S_IFMT) != S_IFREG) fail(FROZEN_IO, "%.500s: not a regular file", path);
    file_.reset(fopen(path, "rb"));
    if (!file_ || fstat(fileno(file_.get()), &found)) fail(FROZEN_IO, "%.500s: %s", path, strerror(errno));
    size_ = static_cast<int64_t>(found.st_size);
  }
  int64_t size() const override { return size_; }
  void read(void* to, int64_t bytes) override {
    const size_t wanted = static_cast<size_t>(bytes), got = fread(to, 1, wanted, file_.get());
    if (got == wanted) return;
    if (ferror(file_.get())) fail(FROZEN_IO, "the file cannot be read: %s", strerror(errno));
    refuse("%zu bytes are missing at its end: it was cut while it was read", wanted - got);
  }

 private:
  struct Close {
    void operator()(FILE* file) const { fclose(file); }
  };
  std::unique_ptr<FILE, Close> file_;
  int64_t size_ = 0;
};

class MemorySource : public Source {
 public:
  MemorySource(const void* data, int64_t bytes) : at_(static_cast<const uint8_t*>(data)), rest_(bytes), size_(bytes) {}
  int64_t size() const override { return size_; }
  void read(void* to, int64_t bytes) override {
    if (bytes > rest_) refuse("%lld bytes are missing at its end", static_cast<long long>(bytes - rest_));
    if (bytes) memcpy(to, at_, static_cast<size_t>(bytes));
    at_ += bytes, rest_ -= bytes;
  }

 private:
  const uint8_t* at_;
  int64_t rest_, size_;
};

int64_t natural(const Json& value, const std::string& name, const char* what) {
  if (value.kind != Json::INTEGER || value.integer < 0) {
    refuse("no safetensors file: %s has a %s that is no integer of 0 or more", shown(name).c_str(), what);
  }
  return value.integer;
}

Entry entry_of(const std::string& name, const Json& value) {
  const Json *const dtype = value.find("dtype"), *const shape = value.find("shape"),
                    *const offsets = value.find("data_offsets");
  const std::string called = shown(name);
  if (name.find('\0') != name.npos) refuse("%s: a name with a zero byte, which C cannot ask for", called.c_str());
  if (value.kind != Json::OBJECT || value.items.size() != 3 || !dtype || !shape || !offsets ||
      dtype->kind != Json::STRING || shape->kind != Json::ARRAY || offsets->kind != Json::ARRAY ||
      offsets->items.size() != 2) {
    refuse("no safetensors file: %s is not an object with dtype, shape and data_offsets", called.c_str());
  }
  const Dtype* const known =
      std::find_if(std::begin(DTYPES), std::end(DTYPES), [&](const Dtype& one) { return dtype->text == one.name; });
  if (known == std::end(DTYPES)) refuse("%s: unknown dtype %s", called.c_str(), shown(dtype->text).c_str());
  Entry entry{name, known->name, {}, 0, 0, {}};
  int64_t bytes = known->bytes, positive = known->bytes;
  for (const Json& size : shape->items) {
    const int64_t n = natural(size, name, "size");
    entry.shape.push_back(n);
    // A size of 0 hides the others from the count of bytes.
    if (__builtin_mul_overflow(positive, std::max<int64_t>(n, 1), &positive) || positive >= MOST_BYTES) {
      refuse("no safetensors file: %s has too many elements", called.c_str());
    }
    bytes *= n;
  }
  entry.begin = natural(offsets->items[0], name, "offset");
  entry.end = natural(offsets->items[1], name, "offset");
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    refuse("no safetensors file: %s has bytes %lld to %lld for %s %s", called.c_str(),
           static_cast<long long>(entry.begin), static_cast<long long>(entry.end), known->name,
           shape_text(entry.shape).c_str());
  }
  return entry;
}

void read_header(const std::string& text, int64_t body, Container& to) {
  if (text.empty() || text[0] != '{') refuse("no safetensors file: its header does not begin with {");
  const Json header = parse_json(text, "the header");
  for (size_t i = 0; i < header.keys.size(); ++i) {
    const Json& value = header.items[i];
    if (header.keys[i] != "__metadata__") {
      to.tensors.push_back(entry_of(header.keys[i], value));
      continue;
    }
    if (value.kind == Json::NOTHING) continue;
    if (value.kind != Json::OBJECT) refuse("no safetensors file: its metadata are no object");
    for (size_t j = 0; j < value.keys.size(); ++j) {
      if (value.items[j].kind != Json::STRING) refuse("no safetensors file: its metadata are not all strings");
      to.metadata.emplace_back(value.keys[j], value.items[j].text);
    }
  }
  std::sort(to.tensors.begin(), to.tensors.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  int64_t reached = 0;
  for (const Entry& entry : to.tensors) {
    if (entry.begin != reached) {
      refuse("no safetensors file: %s begins at %lld, not at %lld", shown(entry.name).c_str(),
             static_cast<long long>(entry.begin), static_cast<long long>(reached));
    }
    reached = entry.end;
  }
  if (reached != body) {
    refuse("no safetensors file: its tensors end at %lld, the file has %lld bytes for them",
           static_cast<long long>(reached), static_cast<long long>(body));
  }
}

}  // namespace

void* aligned_memory(int64_t bytes) {
  void* const memory = aligned_alloc(64, static_cast<size_t>((bytes + 64) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  return memory;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size() && i < 8; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() > 8 ? ", ...]" : "]");
}

const std::string* Container::find_metadata(std::string_view key) const {
  for (const auto& [name, value] : metadata) {
    if (name == key) return &value;
  }
  return nullptr;
}

const Entry* Container::find(std::string_view name) const {
  const auto found = std::lower_bound(tensors.begin(), tensors.end(), name,
                                      [](const Entry& entry, std::string_view wanted) { return entry.name < wanted; });
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

std::unique_ptr<Source> open_file(const char* path) { return std::make_unique<FileSource>(path); }

std::unique_ptr<Source> open_memory(const void* data, int64_t bytes) {
  return std::make_unique<MemorySource>(data, bytes);
}

Container read_container(Source& source) {
  const int64_t total = source.size();
  uint8_t start[8] = {};
  if (total < 8) refuse("no safetensors file: it has %lld bytes", static_cast<long long>(total));
  source.read(start, 8);
  uint64_t size = 0;
  for (int i = 7; i >= 0; --i) size = size << 8 | start[i];
  if (size > static_cast<uint64_t>(total - 8)) {
    refuse("no safetensors file: its header would have %llu bytes, the file has %lld",
           static_cast<unsigned long long>(size), static_cast<long long>(total));
  }
  if (size > LARGEST_HEADER) {
    refuse("a header of %llu bytes, at most %lld are read", static_cast<unsigned long long>(size),
           static_cast<long long>(LARGEST_HEADER));
  }
  std::string text(static_cast<size_t>(size), '\0');
  source.read(text.data(), static_cast<int64_t>(size));
  Container found;
  found.file_bytes = total;
  read_header(text, total - 8 - static_cast<int64_t>(size), found);
  for (Entry& entry : found.tensors) {
    entry.data = Block<uint8_t>(entry.end - entry.begin);
    source.read(entry.data.data(), entry.data.count);
  }
  std::sort(found.tensors.begin(), found.tensors.end(), [](const Entry& a, const Entry& b) { return a.name < b.name; });
  return found;
}

std::string content_digest(const Container& container) {
  auto others = container.metadata;
  std::sort(others.begin(), others.end());
  std::string text = "[{";
  for (const auto& [key, value] : others) {
    if (key == "frozen_kernels.digest") continue;
    if (text.size() > 2) text += ',';
    append_json(text, key);
    text += ':';
    append_json(text, value);
  }
  text += "},[";
  for (const Entry& entry : container.tensors) {
    if (text.back() != '[') text += ',';
    text += '[';
    append_json(text, entry.name);
    text += ",\"" + std::string(entry.dtype) + "\",[";
    for (size_t i = 0; i < entry.shape.size(); ++i) text += (i ? "," : "") + std::to_string(entry.shape[i]);
    Sha256 hash;
    hash.add(entry.data.data(), static_cast<size_t>(entry.data.count));
    text += "],\"" + hash.hex() + "\"]";
  }
  text += "]]";
  Sha256 hash;
  hash.add(text.data(), text.size());
  return hash.hex();
}

}  // namespace fk::lib
