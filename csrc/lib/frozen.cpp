// The C interface of libfrozen: checks of what a caller gives, and no exception past it.
#include "lib/frozen.h"

#include <stdio.h>

#include <exception>
#include <new>
#include <stdexcept>

#include "cpu/core/isa.h"
#include "lib/error.h"
#include "lib/layers.h"

using fk::lib::Error;
using fk::lib::fail;
using fk::lib::shown;
using fk::lib::Weight;

struct frozen_ticket {
  std::vector<Weight> weights;
  fk::lib::Container container;  // the ordinary tensors
};

namespace {

thread_local char last_error[1024] = "";

frozen_status report(frozen_status status, const char* message) {
  snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

template <class Function>
frozen_status guarded(const Function& function) {
  try {
    function();
    return FROZEN_OK;
  } catch (const Error& error) {
    return report(error.status, error.message.c_str());
  } catch (const std::bad_alloc&) {
    return report(FROZEN_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return report(FROZEN_MEMORY, "more memory than there can be");
  } catch (const std::exception& error) {
    return report(FROZEN_ARGUMENT, error.what());  // kernels say so of layers that are too large
  } catch (...) {
    return report(FROZEN_INTERNAL, "an unknown fault");
  }
}

void require(const void* pointer, const char* name) {
  if (!pointer) fail(FROZEN_ARGUMENT, "%s is NULL", name);
}

void require_values(const void* pointer, int64_t count, const char* name) {
  if (!pointer && count) fail(FROZEN_ARGUMENT, "%s is NULL, expected %lld values", name, static_cast<long long>(count));
}

void require_equal(const Weight& weight, const char* name, int64_t got, int64_t wanted) {
  if (got == wanted) return;
  fail(FROZEN_ARGUMENT, "%s: %s is %lld, expected %lld", shown(weight.record.name).c_str(), name,
       static_cast<long long>(got), static_cast<long long>(wanted));
}

int require_threads(int32_t threads) {
  if (threads < 1 || threads > 1024) fail(FROZEN_ARGUMENT, "threads is %d, expected 1 to 1024", threads);
  return threads;
}

const Weight* find_weight(const frozen_ticket& ticket, std::string_view name) {
  for (const Weight& weight : ticket.weights) {
    if (weight.record.name == name) return &weight;
  }
  return nullptr;
}

const Weight& weight_of(const frozen_ticket* ticket, const char* name) {
  require(ticket, "ticket");
  require(name, "weight");
  const Weight* const found = find_weight(*ticket, name);
  if (found) return *found;
  const bool ordinary = ticket->container.find(name);
  fail(FROZEN_NAME, "%s: %s", shown(name).c_str(),
       ordinary ? "an ordinary tensor, expected a frozen weight" : "the ticket has no such weight");
}

const Weight& matrix_of(const frozen_ticket* ticket, const char* name) {
  const Weight& weight = weight_of(ticket, name);
  if (weight.record.shape.size() != 2) {
    fail(FROZEN_ARGUMENT, "%s: its shape is %s, expected 2 dimensions", shown(name).c_str(),
         fk::lib::shape_text(weight.record.shape).c_str());
  }
  return weight;
}

// The bias that the ticket has for a weight; null where it has none.
const float* own_bias(const frozen_ticket& ticket, const Weight& weight) {
  const std::string name = weight.record.name + ".bias";
  const fk::lib::Entry* const entry = ticket.container.find(name);
  if (!entry) return nullptr;
  if (!entry->is("F32", {weight.record.rows})) {
    fail(FROZEN_UNSUPPORTED, "%s: %s %s, expected F32 [%lld]; give a bias or no_bias", shown(name).c_str(),
         entry->dtype, fk::lib::shape_text(entry->shape).c_str(), static_cast<long long>(weight.record.rows));
  }
  return reinterpret_cast<const float*>(entry->data.data());
}

fk::lib::Ends ends_of(const frozen_ticket& ticket, const Weight& weight, const frozen_epilogue* given) {
  if (!given) return {weight.gain.data(), own_bias(ticket, weight), false};
  fk::lib::Ends ends{given->gain, given->bias, given->relu != 0};
  require_equal(weight, "gain_count", given->gain_count, given->gain ? weight.record.rows : 0);
  require_equal(weight, "bias_count", given->bias_count, given->bias ? weight.record.rows : 0);
  if (!ends.gain && !given->no_gain) ends.gain = weight.gain.data();
  if (!ends.bias && !given->no_bias) ends.bias = own_bias(ticket, weight);
  return ends;
}

void describe(const Weight& weight, frozen_tensor& to) {
  to = {weight.record.name.c_str(),
        FROZEN_WEIGHT,
        static_cast<int32_t>(weight.record.shape.size()),
        weight.record.shape.data(),
        fk::lib::code_name(weight.record.code),
        weight.residency,
        "F32",
        nullptr,
        weight.held_bytes()};
}

void describe(const fk::lib::Entry& entry, frozen_tensor& to) {
  to = {entry.name.c_str(), FROZEN_ORDINARY,   static_cast<int32_t>(entry.shape.size()),
        entry.shape.data(), nullptr,           FROZEN_DEFAULT,
        entry.dtype,        entry.data.data(), entry.data.count};
}

frozen_status open_source(std::unique_ptr<fk::lib::Source> source, int32_t residency, int64_t most_bytes,
                          frozen_ticket** ticket) {
  if (residency < FROZEN_DEFAULT || residency > FROZEN_PACKED) {
    fail(FROZEN_ARGUMENT, "residency is %d, expected 0 to 4", residency);
  }
  if (most_bytes < 0) {
    fail(FROZEN_ARGUMENT, "most_bytes is %lld, expected 0 or more", static_cast<long long>(most_bytes));
  }
  auto opened = std::make_unique<frozen_ticket>();
  opened->container = fk::lib::read_container(*source);
  opened->weights = fk::lib::make_weights(opened->container, static_cast<frozen_residency>(residency), most_bytes);
  *ticket = opened.release();
  return FROZEN_OK;
}

}  // namespace

int32_t frozen_version(void) { return FROZEN_VERSION; }

const char* frozen_last_error(void) { return last_error; }

const char* frozen_isa(void) {
  const char* name = nullptr;
  guarded([&] { name = fk::ISA_NAMES[fk::active_isa()]; });
  return name;
}

frozen_status frozen_open(const char* path, int32_t residency, int64_t most_bytes, frozen_ticket** ticket) {
  return guarded([&] {
    require(ticket, "ticket");
    *ticket = nullptr;
    require(path, "path");
    open_source(fk::lib::open_file(path), residency, most_bytes, ticket);
  });
}

frozen_status frozen_open_memory(const void* data, size_t bytes, int32_t residency, int64_t most_bytes,
                                 frozen_ticket** ticket) {
  return guarded([&] {
    require(ticket, "ticket");
    *ticket = nullptr;
    require(data, "data");
    if (bytes > PTRDIFF_MAX) fail(FROZEN_ARGUMENT, "bytes is %zu, expected at most %td", bytes, PTRDIFF_MAX);
    open_source(fk::lib::open_memory(data, static_cast<int64_t>(bytes)), residency, most_bytes, ticket);
  });
}

void frozen_close(frozen_ticket* ticket) { delete ticket; }

int64_t frozen_count(const frozen_ticket* ticket) {
  return ticket ? static_cast<int64_t>(ticket->weights.size() + ticket->container.tensors.size()) : 0;
}

frozen_status frozen_get(const frozen_ticket* ticket, int64_t index, frozen_tensor* tensor) {
  return guarded([&] {
    require(ticket, "ticket");
    require(tensor, "tensor");
    const int64_t count = frozen_count(ticket), weights = static_cast<int64_t>(ticket->weights.size());
    if (index < 0 || index >= count) {
      fail(FROZEN_ARGUMENT, "index is %lld, expected 0 to %lld", static_cast<long long>(index),
           static_cast<long long>(count - 1));
    }
    if (index < weights) return describe(ticket->weights[static_cast<size_t>(index)], *tensor);
    describe(ticket->container.tensors[static_cast<size_t>(index - weights)], *tensor);
  });
}

frozen_status frozen_find(const frozen_ticket* ticket, const char* name, frozen_tensor* tensor) {
  return guarded([&] {
    require(ticket, "ticket");
    require(name, "name");
    require(tensor, "tensor");
    if (const Weight* const weight = find_weight(*ticket, name)) return describe(*weight, *tensor);
    const fk::lib::Entry* const entry = ticket->container.find(name);
    if (!entry) fail(FROZEN_NAME, "%s: the ticket has no tensor of this name", shown(name).c_str());
    describe(*entry, *tensor);
  });
}

frozen_status frozen_linear(const frozen_ticket* ticket, const char* weight, const float* x, int64_t batch,
                            int64_t inputs, float* y, int64_t outputs, const frozen_epilogue* epilogue,
                            int32_t threads) {
  return guarded([&] {
    const Weight& found = matrix_of(ticket, weight);
    if (batch < 0) fail(FROZEN_ARGUMENT, "batch is %lld, expected 0 or more", static_cast<long long>(batch));
    require_equal(found, "inputs", inputs, found.record.cols);
    require_equal(found, "outputs", outputs, found.record.rows);
    require_values(x, batch, "x");
    require_values(y, batch, "y");
    const int team = require_threads(threads);
    fk::lib::run_linear(found, x, batch, y, ends_of(*ticket, found, epilogue), team);
  });
}

frozen_status frozen_conv_shape(const frozen_ticket* ticket, const char* weight, const frozen_conv* conv,
                                const int64_t* x_shape, int64_t* y_shape) {
  return guarded([&] {
    const Weight& found = weight_of(ticket, weight);
    require(conv, "conv");
    require(x_shape, "x_shape");
    require(y_shape, "y_shape");
    const std::vector<int64_t> shape = fk::lib::result_shape(found, *conv, x_shape);
    for (size_t i = 0; i < shape.size(); ++i) y_shape[i] = shape[i];
  });
}

frozen_status frozen_convolve(const frozen_ticket* ticket, const char* weight, const frozen_conv* conv, const float* x,
                              const int64_t* x_shape, float* y, int64_t y_count, const frozen_epilogue* epilogue,
                              int32_t threads) {
  return guarded([&] {
    const Weight& found = weight_of(ticket, weight);
    require(conv, "conv");
    require(x_shape, "x_shape");
    const std::vector<int64_t> shape = fk::lib::result_shape(found, *conv, x_shape);
    int64_t wanted = 1;
    for (const int64_t size : shape) wanted *= size;
    require_equal(found, "y_count", y_count, wanted);
    require_values(x, wanted, "x");
    require_values(y, wanted, "y");
    const int team = require_threads(threads);
    fk::lib::run_convolution(found, *conv, x, x_shape, y, shape, ends_of(*ticket, found, epilogue), team);
  });
}

frozen_status frozen_embedding(const frozen_ticket* ticket, const char* weight, const int64_t* indices, int64_t count,
                               int64_t padding_index, float* y, int64_t columns, int32_t threads) {
  return guarded([&] {
    const Weight& found = matrix_of(ticket, weight);
    if (count < 0) fail(FROZEN_ARGUMENT, "count is %lld, expected 0 or more", static_cast<long long>(count));
    if (padding_index < -1 || padding_index >= found.record.rows) {
      fail(FROZEN_ARGUMENT, "padding_index is %lld, expected -1 or 0 to %lld", static_cast<long long>(padding_index),
           static_cast<long long>(found.record.rows - 1));
    }
    require_equal(found, "columns", columns, found.record.cols);
    require_values(indices, count, "indices");
    require_values(y, count, "y");
    if (found.gain.data()) fail(FROZEN_ARGUMENT, "%s: it has a gain, an embedding has none", shown(weight).c_str());
    fk::lib::run_embedding(found, indices, count, padding_index, y, require_threads(threads));
  });
}
