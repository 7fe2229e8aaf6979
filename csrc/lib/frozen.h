/* libfrozen: run the layers of a frozen network from C, without Python and without torch.
 *
 * A *ticket* is a file that frozen_kernels wrote (`save_ticket` in Python). It holds a trained network in two parts:
 * weights that are mostly not stored, because a seed gives them again, and ordinary tensors such as biases. This
 * library opens a ticket, lists both, and computes linear layers, convolutions and embeddings with its weights. What
 * stands between layers (ReLU, pooling, the order of calls) is the caller's: a ticket holds no graph.
 *
 *     frozen_ticket* ticket;
 *     if (frozen_open("net.safetensors", FROZEN_DEFAULT, 0, &ticket) != FROZEN_OK) {
 *       fprintf(stderr, "%s\n", frozen_last_error());
 *       return 1;
 *     }
 *     float x[4 * 64], y[4 * 10];                     // 4 inputs of 64 values, 4 results of 10
 *     ...
 *     frozen_linear(ticket, "fc", x, 4, 64, y, 10, NULL, 1);
 *     frozen_close(ticket);
 *
 * Names are those of the model's modules in PyTorch: "fc", "layers.0.conv". Every pointer to values is to float32,
 * contiguous, at a multiple of 4 bytes, in PyTorch's order: [batch, channels, height, width].
 *
 * Every function that can fail returns a frozen_status, FROZEN_OK (0) where it did not; then frozen_last_error() says
 * in words what was expected and what came. Where it failed, nothing was written to results that the caller can rely
 * on. No function throws, prints, or ends the process. A file is checked before anything in it is believed: sizes,
 * digest, and the hash of every mask. What a seed gives again takes no room in a file, so a small file
 * may ask for much memory: frozen_open takes a limit. Names have no zero byte.
 *
 * Threads: an open ticket does not change. Any number of threads may compute with one at once; close it after the last
 * has returned. Results are the same bits for every residency, and those of the Python package on the same processor
 * with the same number of threads.
 *
 * FROZEN_KERNELS_ISA=portable|avx2|avx512|vnni|zen4|amx in the environment chooses the instructions; by default the
 * best that the processor has. It is read once, by the first call that needs it.
 *
 * C99 and C++. Link with -lfrozen. */
#ifndef FROZEN_H
#define FROZEN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FROZEN_API __attribute__((visibility("default")))
#else
#define FROZEN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It rises where a structure or the meaning of a function changes; added functions do
 * not change it. Compare with frozen_version(), which is that of the library that was loaded. */
#define FROZEN_VERSION 1

typedef enum frozen_status {
  FROZEN_OK = 0,
  FROZEN_ARGUMENT = 1,    /* a null pointer, a size or a value that does not fit */
  FROZEN_IO = 2,          /* the file is missing or cannot be read */
  FROZEN_TICKET = 3,      /* no ticket, or one that is cut short or was changed */
  FROZEN_UNSUPPORTED = 4, /* a ticket of a later version, or with a feature that this library lacks; it is named */
  FROZEN_NAME = 5,        /* the ticket has no tensor of this name, or one of another kind */
  FROZEN_MEMORY = 6,      /* out of memory */
  FROZEN_INTERNAL = 7     /* a fault of this library */
} frozen_status;

/* What an open ticket keeps of each weight. All give the same results; they differ in memory and speed. A weight that
 * cannot be in one is in that of FROZEN_DEFAULT. */
typedef enum frozen_residency {
  FROZEN_DEFAULT = 0, /* planes of drawn weights and stored signs, packed of stored weights */
  FROZEN_SEED = 1,    /* the seed and the packed supermask: least memory, everything is regenerated in each call */
  FROZEN_MASK = 2,    /* one bit for each weight; signs or values are regenerated in each call */
  FROZEN_PLANES = 3,  /* one bit for each weight, and its sign or its byte */
  FROZEN_PACKED = 4   /* stored weights alone: one bit for each weight, and the values that are kept */
} frozen_residency;

typedef enum frozen_kind {
  FROZEN_WEIGHT = 0,  /* a frozen weight: for the functions that compute; it has no data pointer */
  FROZEN_ORDINARY = 1 /* an ordinary parameter or buffer, such as a bias: `data` points to its values */
} frozen_kind;

typedef struct frozen_ticket frozen_ticket;

/* One tensor of a ticket. Pointers belong to the ticket and are valid until it is closed. */
typedef struct frozen_tensor {
  const char* name;     /* of a weight its module's, "fc"; of an ordinary tensor the whole, "fc.bias" */
  int32_t kind;         /* frozen_kind */
  int32_t dims;         /* how many sizes `shape` has; may be 0 */
  const int64_t* shape; /* as PyTorch has it: (out, in), (out, in / groups, height, width), (rows, columns) ... */
  const char* code;     /* of a weight: "sign", "uniform", "normal", "constant", "stored" or "signs"; else NULL */
  int32_t residency;    /* frozen_residency; of an ordinary tensor FROZEN_DEFAULT */
  const char* dtype;    /* as safetensors names it: "F32", "I64", "BF16" ...; of a weight "F32" */
  const void* data;     /* of an ordinary tensor: its values, contiguous, 64-byte aligned; else NULL */
  int64_t bytes;        /* of `data`; of a weight: what the ticket keeps of it in memory */
} frozen_tensor;

/* What becomes of the sums of a layer: relu(sum * gain + bias), one gain and one bias for each output channel.
 * NULL in place of the structure, or one that is all zero: the bias "<name>.bias" and the gain that the ticket has for
 * the weight, each where it has one, and no ReLU. */
typedef struct frozen_epilogue {
  const float* bias;  /* in place of the ticket's, or NULL */
  int64_t bias_count; /* floats of `bias`: as many as the layer has output channels; 0 of NULL */
  const float* gain;  /* in place of the ticket's, or NULL */
  int64_t gain_count; /* the same of `gain` */
  int32_t relu;       /* 1: max(result, 0), NaN stays NaN */
  int32_t no_bias;    /* 1: not the ticket's bias either */
  int32_t no_gain;    /* 1: not the ticket's gain either */
} frozen_epilogue;

/* A convolution of `dims` (1 to 3) spatial dimensions; only the first `dims` entries of each array are read. Zeros are
 * padded on both sides. The result has (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1 positions, the
 * kernel's size being the weight's. Sizes with their padding, multiplied over all dimensions, give at most 2^31. */
typedef struct frozen_conv {
  int32_t dims;
  int64_t groups;
  int64_t stride[3], padding[3], dilation[3];
} frozen_conv;

/* FROZEN_VERSION of the loaded library. */
FROZEN_API int32_t frozen_version(void);

/* What the last call of this thread that failed said, in English; "" before any. Valid until the next one fails. */
FROZEN_API const char* frozen_last_error(void);

/* The instructions in use: "portable", "avx2", "avx512", "vnni", "zen4", "amx" or "neon"; NULL, with an error, where
 * FROZEN_KERNELS_ISA names what this processor lacks. */
FROZEN_API const char* frozen_isa(void);

/* Open a ticket: read it whole, check it, and make what `residency` (a frozen_residency) keeps. `path` is as fopen
 * takes it. `most_bytes`: how much memory what a seed gives again may take, checked before any of it is made; 0 for
 * keep planes of 1 GiB and 16 bytes for each byte of the file. On success *ticket is to be closed; otherwise it is
 * NULL. The file may be changed or removed afterwards. */
FROZEN_API frozen_status frozen_open(const char* path, int32_t residency, int64_t most_bytes, frozen_ticket** ticket);

/* The same of a ticket in memory, which is copied. */
FROZEN_API frozen_status frozen_open_memory(const void* data, size_t bytes, int32_t residency, int64_t most_bytes,
                                            frozen_ticket** ticket);

/* Free a ticket; NULL is allowed. */
FROZEN_API void frozen_close(frozen_ticket* ticket);

/* How many tensors a ticket has: weights first, then ordinary ones by name. 0 of NULL. */
FROZEN_API int64_t frozen_count(const frozen_ticket* ticket);

/* Tensor `index`, 0 to frozen_count() - 1. */
FROZEN_API frozen_status frozen_get(const frozen_ticket* ticket, int64_t index, frozen_tensor* tensor);

/* The tensor of this name. */
FROZEN_API frozen_status frozen_find(const frozen_ticket* ticket, const char* name, frozen_tensor* tensor);

/* y = epilogue of W x, for a weight of shape (outputs, inputs).
 * x: [batch, inputs]; y: [batch, outputs], which must not share memory with x. threads: how many may work at once, 1 to
 * 1024. */
FROZEN_API frozen_status frozen_linear(const frozen_ticket* ticket, const char* weight, const float* x, int64_t batch,
                                       int64_t inputs, float* y, int64_t outputs, const frozen_epilogue* epilogue,
                                       int32_t threads);

/* The shape of a convolution's result, conv->dims + 2 numbers, for an input of shape `x_shape` of as many:
 * (batch, channels, spatial sizes...). */
FROZEN_API frozen_status frozen_conv_shape(const frozen_ticket* ticket, const char* weight, const frozen_conv* conv,
                                           const int64_t* x_shape, int64_t* y_shape);

/* y = epilogue of the convolution of x, for a weight of shape (out, in / groups, kernel sizes...).
 * x: of shape `x_shape`, conv->dims + 2 numbers; y: `y_count` floats, as many as frozen_conv_shape says, which
 * must not share memory with x. */
FROZEN_API frozen_status frozen_convolve(const frozen_ticket* ticket, const char* weight, const frozen_conv* conv,
                                         const float* x, const int64_t* x_shape, float* y, int64_t y_count,
                                         const frozen_epilogue* epilogue, int32_t threads);

/* Rows of a weight of shape (rows, columns): y[i] = W[indices[i]], and zeros where indices[i] is `padding_index`; -1
 * for none. y: [count, columns]. */
FROZEN_API frozen_status frozen_embedding(const frozen_ticket* ticket, const char* weight, const int64_t* indices,
                                          int64_t count, int64_t padding_index, float* y, int64_t columns,
                                          int32_t threads);

#ifdef __cplusplus
}
#endif

#endif
