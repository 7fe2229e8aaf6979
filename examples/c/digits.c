/* Serve the digits ticket of `make demo` from C, and compare with what PyTorch gives.
 *
 * `make c-example` does all of it. By hand, after `make libfrozen` and `make demo`:
 *
 *     python examples/c/expected.py
 *     cc -std=c99 -O2 -Ibuild/libfrozen examples/c/digits.c -Lbuild/libfrozen -lfrozen -lm -Wl,-rpath,build/libfrozen \
 *         -o out/c/digits
 *     out/c/digits out/ticket.safetensors out/c/images.f32 out/c/outputs.f32
 *
 * The first command writes 360 images, and PyTorch's outputs for them. This program opens the ticket, runs the network
 * and prints the digit that it sees in each image; it ends with status 1 where any output differs by a bit.
 *
 * A ticket holds weights, and no graph: which layer comes when is in `forward` below. Batch norm is folded into the
 * convolution before it, as `fk.fold_batch_norm_` does in Python: a gain and a bias for each channel, which the library
 * applies while it stores the result, with the ReLU that follows. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frozen.h"

enum { SIDE = 8, PIXELS = SIDE * SIDE, CLASSES = 10, THREADS = 1 };

static void fail(const char* what) {
  fprintf(stderr, "digits: %s: %s\n", what, frozen_last_error());
  exit(1);
}

static float* values(size_t count) {
  float* const found = malloc((count ? count : 1) * sizeof(float));
  if (!found) {
    fprintf(stderr, "digits: out of memory\n");
    exit(1);
  }
  return found;
}

/* All floats of a file; *count says how many. */
static float* read_floats(const char* path, size_t* count) {
  FILE* const file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) {
    perror(path);
    exit(1);
  }
  const long bytes = ftell(file);
  rewind(file);
  *count = (size_t)bytes / sizeof(float);
  float* const found = values(*count);
  if (fread(found, sizeof(float), *count, file) != *count) {
    perror(path);
    exit(1);
  }
  fclose(file);
  return found;
}

/* Gain and bias of a batch norm without parameters: (x - mean) / sqrt(var + eps), made in double and rounded once. */
static frozen_epilogue folded(const frozen_ticket* ticket, const char* norm, float* gain, float* bias) {
  frozen_tensor mean, var;
  char name[64];
  snprintf(name, sizeof name, "%s.running_mean", norm);
  if (frozen_find(ticket, name, &mean)) fail(name);
  snprintf(name, sizeof name, "%s.running_var", norm);
  if (frozen_find(ticket, name, &var)) fail(name);
  const int64_t channels = mean.shape[0];
  for (int64_t i = 0; i < channels; ++i) {
    const double factor = 1.0 / sqrt((double)((const float*)var.data)[i] + 1e-5);
    gain[i] = (float)factor;
    bias[i] = (float)((0.0 - (double)((const float*)mean.data)[i]) * factor);
  }
  const frozen_epilogue ends = {.bias = bias, .bias_count = channels, .gain = gain, .gain_count = channels, .relu = 1};
  return ends;
}

/* A 3x3 convolution that keeps the size, its batch norm and its ReLU. x is freed; *channels becomes the result's. */
static float* block(const frozen_ticket* ticket, const char* conv, const char* norm, float* x, int64_t batch,
                    int64_t* channels, int64_t side) {
  const frozen_conv layer = {2, 1, {1, 1}, {1, 1}, {1, 1}};
  const int64_t x_shape[4] = {batch, *channels, side, side};
  int64_t y_shape[4];
  if (frozen_conv_shape(ticket, conv, &layer, x_shape, y_shape)) fail(conv);
  *channels = y_shape[1];
  float *const gain = values((size_t)*channels), *const bias = values((size_t)*channels);
  const frozen_epilogue ends = folded(ticket, norm, gain, bias);
  const int64_t count = y_shape[0] * y_shape[1] * y_shape[2] * y_shape[3];
  float* const y = values((size_t)count);
  if (frozen_convolve(ticket, conv, &layer, x, x_shape, y, count, &ends, THREADS)) fail(conv);
  free(x), free(gain), free(bias);
  return y;
}

/* The largest of each 2x2 square, in place. */
static void max_pool(float* x, int64_t planes, int64_t side) {
  float* to = x;
  for (int64_t plane = 0; plane < planes; ++plane, x += side * side) {
    for (int64_t row = 0; row < side; row += 2) {
      for (int64_t col = 0; col < side; col += 2) {
        const float* const from = x + row * side + col;
        const float upper = fmaxf(from[0], from[1]), lower = fmaxf(from[side], from[side + 1]);
        *to++ = fmaxf(upper, lower);
      }
    }
  }
}

/* Outputs [batch, CLASSES] of images [batch, 1, SIDE, SIDE], which are freed. Names are those of the modules. */
static float* forward(const frozen_ticket* ticket, float* x, int64_t batch) {
  int64_t channels = 1;
  x = block(ticket, "0", "1", x, batch, &channels, SIDE);
  x = block(ticket, "3", "4", x, batch, &channels, SIDE);
  max_pool(x, batch * channels, SIDE);
  x = block(ticket, "7", "8", x, batch, &channels, SIDE / 2);
  x = block(ticket, "10", "11", x, batch, &channels, SIDE / 2);
  max_pool(x, batch * channels, SIDE / 2);

  frozen_tensor hidden;
  if (frozen_find(ticket, "15", &hidden)) fail("15");
  const int64_t outputs = hidden.shape[0];
  float *const gain = values((size_t)outputs), *const bias = values((size_t)outputs);
  const frozen_epilogue ends = folded(ticket, "16", gain, bias);
  float *const h = values((size_t)(batch * outputs)), *const y = values((size_t)(batch * CLASSES));
  if (frozen_linear(ticket, "15", x, batch, hidden.shape[1], h, outputs, &ends, THREADS)) fail("15");
  if (frozen_linear(ticket, "18", h, batch, outputs, y, CLASSES, NULL, THREADS)) fail("18");
  free(x), free(h), free(gain), free(bias);
  return y;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: digits TICKET IMAGES OUTPUTS\n");
    return 2;
  }
  if (frozen_version() != FROZEN_VERSION) {
    fprintf(stderr, "digits: libfrozen of version %d, expected %d\n", (int)frozen_version(), FROZEN_VERSION);
    return 1;
  }
  frozen_ticket* ticket;
  if (frozen_open(argv[1], FROZEN_DEFAULT, 0, &ticket)) fail(argv[1]);
  size_t pixels, expected_count;
  float* const images = read_floats(argv[2], &pixels);
  float* const expected = read_floats(argv[3], &expected_count);
  const int64_t batch = (int64_t)(pixels / PIXELS);
  if (pixels % PIXELS || expected_count != (size_t)batch * CLASSES) {
    fprintf(stderr, "digits: %zu pixels and %zu outputs, expected %d and %d for each image\n", pixels, expected_count,
            PIXELS, CLASSES);
    return 1;
  }
  float* const y = forward(ticket, images, batch);
  for (int64_t i = 0; i < batch; ++i) {
    int best = 0;
    for (int c = 1; c < CLASSES; ++c) {
      if (y[i * CLASSES + c] > y[i * CLASSES + best]) best = c;
    }
    printf("%d%c", best, i % 60 == 59 || i + 1 == batch ? '\n' : ' ');
  }
  const int differs = memcmp(y, expected, expected_count * sizeof(float)) != 0;
  printf("%s: %zu outputs %s those of PyTorch\n", frozen_isa(), expected_count,
         differs ? "DIFFER from" : "are bit for bit");
  free(y), free(expected);
  frozen_close(ticket);
  return differs;
}
