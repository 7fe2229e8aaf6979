// What a kernel for few pixels is given. Raw pointers to device memory, not owned; plain data that host and device
// share.
#pragma once
#include <stdint.h>

#include "frozen/format.h"
#include "frozen/weight.h"

namespace fk::cuda {

// y = relu(gain * W x + bias) of a linear layer; transposed: of W^T. The elements of a pixel lie one after another.
struct Product {
  const void* x;               // [pixels, cols], transposed [pixels, rows]
  void* y;                     // [pixels, rows], transposed [pixels, cols]
  int64_t x_stride, y_stride;  // elements from a pixel to the next
  const int32_t* header;       // the format's; device memory too, so that no call waits for it
  const uint32_t* keep;        // [rows, words]
  const uint32_t* sign;        // [rows, words]; null: the kernel draws them, or the code has none
  const uint8_t* bytes;        // [rows, cols]; null: the kernel draws them, or the code has none
  const void* values;          // of a stored weight: what is kept, in stream order
  const int64_t* offsets;      // of a stored weight: [rows * chunks + 1] places of the chunks' first values
  const float* row_scale;      // [rows], or null: beside INT8 values
  const float* gain;           // one for each channel of y, or null
  const void* bias;            // one for each channel of y, or null
  int rows, cols, words, pixels;
  int code, dtype, bias_dtype, value_dtype;  // dtype: of x and y
  bool relu, transposed;

  int chunks() const { return static_cast<int>((words + CHUNK_WORDS - 1) / CHUNK_WORDS); }
};

// How a kernel is launched.
struct Plan {
  int blocks[2], threads;
  int shared;  // bytes of dynamic shared memory
  int tiles;   // that a block makes one after another; its meaning is the kernel's
};

constexpr int SHARED_LIMIT = 99 << 10;  // bytes that a block may have on every target

constexpr int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace fk::cuda
