// The shape M x N x K of the tensor-core instructions with 16-bit inputs that products of tiles are made of. The shapes
// that jit/atom.py names are shipped; others are for the study of shapes alone.
#pragma once

namespace omni {

// mma.sync: m16n8k16, or m16n8k8.
template <int K>
struct MmaAtom {
  static constexpr int kMmaAtomM = 16;
  static constexpr int kMmaAtomN = 8;
  static constexpr int kMmaAtomK = K;
  static_assert(K == 16 || K == 8, "mma.sync: m16n8k16 or m16n8k8");
};

// wgmma: m64nNk16, where N is the width of the tile, but at most kScoresAtomN for scores and gradients of weights, and
// kSumsAtomN for O, dQ, dK and dV.
template <int ScoresN, int SumsN>
struct WgmmaAtom {
  static constexpr int kMmaAtomM = 64;
  static constexpr int kMmaAtomK = 16;
  static constexpr int kScoresAtomN = ScoresN;
  static constexpr int kSumsAtomN = SumsN;
};

// Columns of one instruction of a product whose tile has kCols.
template <int kCols, int kMost>
constexpr int atom_columns() {
  constexpr int kN = kCols < kMost ? kCols : kMost;
  static_assert(kCols % kN == 0, "instructions of one width");
  return kN;
}

}  // namespace omni
