// Gradient of the scores of free weights from both sides of a layer: out[i] = sign(scores[i]) * dL/dW * code * scale.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

// A gradient that a kernel is asked for, pixels merged where they can be.
struct ScoreCall {
  const Frozen& f;
  const Geometry& g;
  const Activations &wide, &narrow;
  const Layer layer;
  const void* scores;
  void* out;
  int scores_dtype, threads;
};

void score_gradient_panels(const ScoreCall& call);

}  // namespace fk::FK_ISA_NS

namespace fk::FK_LEVEL_NS {

#if FK_HAS_TILES
// Where tile registers pay for cutting both sides into parts, which each tap and each block of rows does anew.
bool score_tiles_serve(const ScoreCall& call);
void score_gradient_tiles(const ScoreCall& call);
#endif

// Groups of so few rows that sums run along the pixels.
bool score_along_pixels_serves(const ScoreCall& call);
void score_gradient_along_pixels(const ScoreCall& call);

}  // namespace fk::FK_LEVEL_NS
