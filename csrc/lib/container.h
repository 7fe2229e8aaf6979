// The safetensors container of a ticket, read without trust and into memory of its own.
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fk::lib {

struct Free {
  void operator()(void* p) const { free(p); }
};

// Memory that begins at a multiple of 64 bytes and is never null; bad_alloc where there is none.
template <class T>
struct Block {
  std::unique_ptr<T, Free> memory;
  int64_t count = 0;

  Block() = default;
  explicit Block(int64_t n);
  T* data() const { return memory.get(); }
  int64_t bytes() const { return count * static_cast<int64_t>(sizeof(T)); }
};

void* aligned_memory(int64_t bytes);

template <class T>
Block<T>::Block(int64_t n) : memory(static_cast<T*>(aligned_memory(n * static_cast<int64_t>(sizeof(T))))), count(n) {}

struct Entry {
  std::string name;
  const char* dtype;  // as safetensors names it
  std::vector<int64_t> shape;
  int64_t begin, end;  // in the body of the file
  Block<uint8_t> data;

  bool is(std::string_view type, const std::vector<int64_t>& sizes) const { return type == dtype && shape == sizes; }
};

struct Container {
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<Entry> tensors;  // sorted by name
  int64_t file_bytes;

  const std::string* find_metadata(std::string_view key) const;
  const Entry* find(std::string_view name) const;
};

// Where the bytes of a file come from, in order.
class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t size() const = 0;
  virtual void read(void* to, int64_t bytes) = 0;  // all of them, or an error
};

// Error FROZEN_IO where the path is no regular file that can be read.
std::unique_ptr<Source> open_file(const char* path);
std::unique_ptr<Source> open_memory(const void* data, int64_t bytes);

// Error FROZEN_TICKET where it is no safetensors file, or is ambiguous: tensors must fill its body without gaps.
Container read_container(Source& source);

// The digest of a ticket: of all metadata but itself, and the name, dtype, shape and hash of every tensor.
std::string content_digest(const Container& container);

// "uint8 [3, 5]" for messages.
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace fk::lib
