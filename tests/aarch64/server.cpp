// Serves the functions of the extension on stdin and stdout, to remote.py: a name, arguments and the memory that they
// point into come; a result and the memory that changed go. Memory of a call lies between pages that no one may touch.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "binding/bind.h"

void fill_module(pybind11::module_& m);

namespace fk {
// Results are made where torch is.
void bind_memory(pybind11::module_&) {}
}  // namespace fk

namespace {

using pybind11::Value;

const int64_t PAGE = sysconf(_SC_PAGESIZE);
constexpr int64_t LINE = 64;
constexpr unsigned char UNTOUCHED = 0xA5;

struct Closed {};

void read_bytes(void* to, int64_t count) {
  if (fread(to, 1, static_cast<size_t>(count), stdin) != static_cast<size_t>(count)) throw Closed();
}
int64_t read_integer() {
  int64_t x;
  read_bytes(&x, sizeof x);
  return x;
}
std::string read_text() {
  std::string text(static_cast<size_t>(read_integer()), '\0');
  read_bytes(text.data(), static_cast<int64_t>(text.size()));
  return text;
}
void write_bytes(const void* from, int64_t count) { fwrite(from, 1, static_cast<size_t>(count), stdout); }
void write_integer(int64_t x) { write_bytes(&x, sizeof x); }
void write_text(const std::string& text) {
  write_integer(static_cast<int64_t>(text.size()));
  write_bytes(text.data(), static_cast<int64_t>(text.size()));
}

// A copy of a tensor's memory that ends where a page begins that no one may touch, up to the alignment of a line.
class Memory {
 public:
  Memory(int64_t bytes, std::vector<char> sent) : bytes_(bytes), held_(round_up(bytes, PAGE)), sent_(std::move(sent)) {
    void* const all =
        mmap(nullptr, static_cast<size_t>(held_ + 2 * PAGE), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<char*>(all);
    if (held_) mprotect(pages_ + PAGE, static_cast<size_t>(held_), PROT_READ | PROT_WRITE);
    memset(pages_ + PAGE, UNTOUCHED, static_cast<size_t>(held_));
    memcpy(at(), sent_.data(), static_cast<size_t>(bytes_));
  }
  Memory(Memory&& other) noexcept
      : bytes_(other.bytes_), held_(other.held_), pages_(other.pages_), sent_(std::move(other.sent_)) {
    other.pages_ = nullptr;
  }
  ~Memory() {
    if (pages_) munmap(pages_, static_cast<size_t>(held_ + 2 * PAGE));
  }

  char* at() const { return pages_ + PAGE + held_ - round_up(bytes_, LINE); }
  void take(std::vector<char> sent) {
    sent_ = std::move(sent);
    memcpy(at(), sent_.data(), static_cast<size_t>(bytes_));
  }
  bool changed() const { return memcmp(at(), sent_.data(), static_cast<size_t>(bytes_)) != 0; }
  bool written_outside() const {
    for (const char* p = pages_ + PAGE; p < pages_ + PAGE + held_; ++p) {
      if ((p < at() || p >= at() + bytes_) && static_cast<unsigned char>(*p) != UNTOUCHED) return true;
    }
    return false;
  }
  void write() const {
    write_integer(bytes_);
    write_bytes(at(), bytes_);
  }

 private:
  static int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

  int64_t bytes_, held_;
  char* pages_ = nullptr;
  std::vector<char> sent_;
};

// Memory by the number that the client gave it.
using Memories = std::map<int64_t, Memory>;

void read_memories(Memories& memories, std::vector<int64_t>& sent) {
  for (int64_t count = read_integer(); count; --count) {
    const int64_t number = read_integer();
    std::vector<char> bytes(static_cast<size_t>(read_integer()));
    const int64_t size = static_cast<int64_t>(bytes.size());
    read_bytes(bytes.data(), size);
    sent.push_back(number);
    const auto found = memories.find(number);
    if (found != memories.end()) {
      found->second.take(std::move(bytes));
    } else {
      memories.emplace(number, Memory(size, std::move(bytes)));
    }
  }
}

Value read_value(const Memories& memories) {
  char kind;
  read_bytes(&kind, 1);
  if (kind == 'n') return {};
  if (kind == 'i') return read_integer();
  if (kind == 't') return read_text();
  if (kind == 'r') {
    Value x;
    x.kind = Value::REAL;
    read_bytes(&x.real, sizeof x.real);
    return x;
  }
  if (kind == 'a') {  // a place in a tensor
    const int64_t number = read_integer(), offset = read_integer();
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(memories.at(number).at())) + offset;
  }
  std::vector<Value> items(static_cast<size_t>(read_integer()));
  for (Value& item : items) item = read_value(memories);
  return items;
}

void write_value(const Value& x) {
  const char kind = "nirtbl"[x.kind];
  write_bytes(&kind, 1);
  if (x.kind == Value::INTEGER) write_integer(x.integer);
  if (x.kind == Value::TEXT || x.kind == Value::BYTES) write_text(x.text);
  if (x.kind != Value::LIST) return;
  write_integer(static_cast<int64_t>(x.items.size()));
  for (const Value& item : x.items) write_value(item);
}

void write_error(const char* type, const char* message) {
  write_bytes("e", 1);
  write_text(type);
  write_text(message);
}

void answer(const Value& result, const Memories& memories, const std::vector<int64_t>& sent) {
  std::vector<int64_t> changed;
  for (const int64_t number : sent) {
    if (memories.at(number).written_outside()) return write_error("AssertionError", "written outside a tensor");
    if (memories.at(number).changed()) changed.push_back(number);
  }
  write_bytes("v", 1);
  write_value(result);
  write_integer(static_cast<int64_t>(changed.size()));
  for (const int64_t number : changed) {
    write_integer(number);
    memories.at(number).write();
  }
}

void serve(const pybind11::module_& m, Memories& memories) {
  const std::string name = read_text();
  std::vector<int64_t> sent;
  read_memories(memories, sent);
  const Value given = read_value(memories);
  try {
    answer(m.functions.at(name)(given.items), memories, sent);
  } catch (const std::invalid_argument& error) {
    write_error("ValueError", error.what());
  } catch (const std::out_of_range& error) {
    write_error("IndexError", error.what());
  } catch (const std::runtime_error& error) {
    write_error("RuntimeError", error.what());
  } catch (const std::logic_error& error) {
    write_error("TypeError", error.what());
  }
  for (int64_t count = read_integer(); count; --count) memories.erase(read_integer());
}

}  // namespace

int main() {
  pybind11::module_ m;
  fill_module(m);
  Memories memories;
  try {
    for (;;) {
      serve(m, memories);
      fflush(stdout);
    }
  } catch (const Closed&) {
    return 0;
  }
}
