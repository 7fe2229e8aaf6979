// As much of pybind11 as csrc/binding asks for, without Python: functions go into a table by name, and take and give
// values that server.cpp reads and writes.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

struct PyObject;  // a value, for code that asks for one through Python's own functions

namespace pybind11 {

struct Value {
  enum Kind { NONE, INTEGER, REAL, TEXT, BYTES, LIST };
  Kind kind = NONE;
  int64_t integer = 0;
  double real = 0;
  std::string text;
  std::vector<Value> items;

  Value() = default;
  Value(int64_t x) : kind(INTEGER), integer(x) {}
  Value(std::string x) : kind(TEXT), text(std::move(x)) {}
  Value(std::vector<Value> x) : kind(LIST), items(std::move(x)) {}

  const Value& as(Kind wanted) const {
    if (kind != wanted) throw std::logic_error("an argument is of another kind than the function takes");
    return *this;
  }
};

using Arguments = std::vector<Value>;
using Function = std::function<Value(const Arguments&)>;

struct object {
  Value value;
};
inline object none() { return {}; }
struct bytearray : object {
  bytearray(const char* from, size_t count) : object{Value(std::string(from, count))} { value.kind = Value::BYTES; }
};
struct tuple : object {
  tuple() = default;
  explicit tuple(size_t size) : object{Value(std::vector<Value>(size))} {}
  Value& operator[](size_t i) { return value.items[i]; }
  size_t size() const { return value.items.size(); }
  const PyObject* ptr() const { return reinterpret_cast<const PyObject*>(&value); }
};

// From a value to the type of an argument.
template <class T, class = void>
struct From;
template <class T>
struct From<T, std::enable_if_t<std::is_arithmetic_v<T>>> {
  static T take(const Value& v) {
    return v.kind == Value::REAL ? static_cast<T>(v.real) : static_cast<T>(v.as(Value::INTEGER).integer);
  }
};
template <>
struct From<std::string> {
  static std::string take(const Value& v) { return v.as(Value::TEXT).text; }
};
template <>
struct From<tuple> {
  static tuple take(const Value& v) {
    tuple found;
    found.value = v.as(Value::LIST);
    return found;
  }
};
template <class T>
struct From<std::vector<T>> {
  static std::vector<T> take(const Value& v) {
    std::vector<T> found;
    for (const Value& item : v.as(Value::LIST).items) found.push_back(From<T>::take(item));
    return found;
  }
};
inline const std::vector<Value>& items(const Value& v, size_t count) {
  if (v.as(Value::LIST).items.size() != count) throw std::logic_error("a list is of another length than it must be");
  return v.items;
}
template <class T, size_t N>
struct From<std::array<T, N>> {
  static std::array<T, N> take(const Value& v) {
    std::array<T, N> found;
    for (size_t i = 0; i < N; ++i) found[i] = From<T>::take(items(v, N)[i]);
    return found;
  }
};
template <class... T>
struct From<std::tuple<T...>> {
  template <size_t... I>
  static std::tuple<T...> each(const std::vector<Value>& v, std::index_sequence<I...>) {
    return {From<T>::take(v[I])...};
  }
  static std::tuple<T...> take(const Value& v) { return each(items(v, sizeof...(T)), std::index_sequence_for<T...>()); }
};
template <class A, class B>
struct From<std::pair<A, B>> {
  static std::pair<A, B> take(const Value& v) { return {From<A>::take(items(v, 2)[0]), From<B>::take(items(v, 2)[1])}; }
};

// And back from the type of a result.
inline Value to_value(const std::string& x) { return x; }
inline Value to_value(const char* x) { return std::string(x); }
inline Value to_value(const object& x) { return x.value; }
template <class T>
std::enable_if_t<std::is_integral_v<T>, Value> to_value(T x) {
  return static_cast<int64_t>(x);
}
template <class... T>
Value to_value(const std::tuple<T...>& x) {
  return std::apply([](const T&... part) { return std::vector<Value>{to_value(part)...}; }, x);
}
template <class T>
Value to_value(const std::vector<T>& x) {
  std::vector<Value> all;
  for (const T& item : x) all.push_back(to_value(item));
  return all;
}
template <class... T>
tuple make_tuple(const T&... x) {
  tuple found;
  found.value = std::vector<Value>{to_value(x)...};
  return found;
}

template <class R, class... A, size_t... I>
Value call(const std::function<R(A...)>& f, const Arguments& given, std::index_sequence<I...>) {
  if (given.size() != sizeof...(A)) throw std::logic_error("another number of arguments than the function takes");
  if constexpr (std::is_void_v<R>) {
    f(From<std::decay_t<A>>::take(given[I])...);
    return {};
  } else {
    return to_value(f(From<std::decay_t<A>>::take(given[I])...));
  }
}
template <class R, class... A>
Function wrap(std::function<R(A...)> f) {
  return [f](const Arguments& given) { return call(f, given, std::index_sequence_for<A...>()); };
}

class module_ {
 public:
  std::map<std::string, Function> functions;

  std::string& doc() { return doc_; }
  template <class F, class... Extra>
  void def(const std::string& name, F&& f, const Extra&...) {
    functions[name] = wrap(std::function(std::forward<F>(f)));
  }

 private:
  std::string doc_;
};

template <class... A>
struct init {};

// "Name" makes an object and returns its number, the first argument of "Name.method".
template <class T>
class class_ {
 public:
  class_(module_& m, std::string name, const char*) : module_of_(m), name_(std::move(name)) {}

  template <class... A, class... Extra>
  class_& def(const init<A...>&, const Extra&...) {
    const auto made = made_;
    module_of_.def(name_, std::function<int64_t(A...)>([made](A... given) {
                     made->push_back(std::make_unique<T>(given...));
                     return static_cast<int64_t>(made->size() - 1);
                   }));
    return *this;
  }
  template <class R, class... A>
  class_& def(const std::string& method, R (T::*f)(A...) const) {
    const auto made = made_;
    module_of_.def(name_ + "." + method, std::function<R(int64_t, A...)>([made, f](int64_t number, A... given) {
                     return ((*made->at(static_cast<size_t>(number))).*f)(given...);
                   }));
    return *this;
  }

 private:
  module_& module_of_;
  std::string name_;
  std::shared_ptr<std::vector<std::unique_ptr<T>>> made_ = std::make_shared<std::vector<std::unique_ptr<T>>>();
};

struct arg {
  explicit arg(const char*) {}
};
struct gil_scoped_release {
  gil_scoped_release() {}
};
template <class Guard>
struct call_guard {};

}  // namespace pybind11

inline const PyObject* PyTuple_GET_ITEM(const PyObject* list, int i) {
  const auto& value = *reinterpret_cast<const pybind11::Value*>(list);
  return reinterpret_cast<const PyObject*>(&value.items[static_cast<size_t>(i)]);
}
inline int64_t PyLong_AsLongLong(const PyObject* x) {
  return reinterpret_cast<const pybind11::Value*>(x)->as(pybind11::Value::INTEGER).integer;
}

#define PYBIND11_MODULE(name, m) void fill_module(pybind11::module_& m)
