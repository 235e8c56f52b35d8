// What the Hopper kernels of the backward pass are launched with, and their compile-time shapes: one producer
// warpgroup, and consumers that own 64 keys (dK and dV) or 64 queries (dQ) each.
#pragma once

#include "omni/backward_params.cuh"
#include "omni/mma_atom.cuh"
#include "omni/numbers.cuh"
#include "omni/sm90/tma.cuh"

namespace omni {

struct BackwardParamsSm90 {
  TensorMap q_map, dout_map, k_map, v_map;
  BackwardParams b;
  int* counter;  // {next work item, thread blocks that handed out all, that ended}: zero at launch, left zero
  // Of a kernel that makes all gradients: (batch, q_heads, q_padded / kBr, kBr * kHeadDim); (places, kBr * kHeadDim) of
  // one that makes dQ of the sums.
  float* dq_sums;
  float4* partials;  // (all heads of keys, n_slots, 2, warps): what parts of split key blocks leave; see key_merge.cuh
  u32* arrivals;     // (all heads of keys, n_split_rows, 2, warps): zero at launch, left zero
  // Of each sum, or place of sums, how many were added, and where the kernel makes lse2 and delta one more, from when
  // they are there; zero at launch.
  int* turns;
  int4 const* splits;  // of each part: {block among the split ones or -1, its number, parts of the block, first slot}
  int work_items, n_slots, n_split_rows;
  // Where sums of dQ have an order: of each tile that is walked, how many are added to its sum before; where they have
  // none, and the kernel makes dQ of them: how many are added in all. An entry's fourth word is the place of its first
  // tile. head_ranks: 0 where the query heads of a group are innermost and have the same ranks; where a part goes head
  // by head, how far behind those of one head the next one's are, or without an order any other number.
  int head_ranks;
  int const* ranks;
  // Of a kernel that makes dQ of the sums. Sums have numbers: those of a head of queries follow each other, then those
  // of the next head of the group. head_sums: how many a head has. kv_sums, batch_sums: from one head of keys, or batch
  // element, to the next. places: of sums; sum s has place s % places, as one after s / places others. turn_heads:
  // heads of keys whose sums have places at a time.
  int head_sums, kv_sums, batch_sums, places, turn_heads;
  // Heads of keys whose parts are handed out before the tiers of the others', section by section; theirs are the first
  // half of all parts then. 0: tiers of all heads, and no halves.
  int early_heads;
};

// Panels of 64 columns that hold so many columns.
constexpr int panels_of(int columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

// Where either is wider, dK and dV of 64 keys do not fit one warpgroup's registers: a role a warpgroup.
constexpr int kWideHeadDim = 128;

template <
    int HeadDim, int ValueDim, int Br, int Bc, int Stages, int Warps, bool Bf16, bool Softcap, bool Fused, bool Ordered,
    class Atom, int Finishes = 0, bool Prepares = false>
struct BackwardConfig : Atom {
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kValueDim = ValueDim;
  static constexpr int kBr = Br;
  static constexpr int kBc = Bc;
  static constexpr int kStages = Stages;
  static constexpr bool kBf16 = Bf16;
  static constexpr bool kSoftcap = Softcap;
  static constexpr bool kApart = Fused && Bc == 128 && Warps == 16;  // a warpgroup of its own makes dQ
  static constexpr int kConsumers = Warps / 4 - 1 - kApart;
  static constexpr int kThreads = 32 * Warps;
  static constexpr bool kFused = Fused;               // one kernel for all gradients
  static constexpr bool kOrdered = Ordered;           // which adds to each sum of dQ in one order
  static constexpr bool kFinishes = Finishes == 1;    // and has who adds last hand the sum over, to make dQ of it
  static constexpr bool kBackground = Finishes == 2;  // makes dQ of the sums without keeping who adds
  static constexpr bool kPrepares = Prepares;         // and makes lse2 and delta, too
  static constexpr int kFirstTurn = Prepares;         // of a sum, when lse2 and delta of its rows are there
  static constexpr bool kTickets = kBackground && !Ordered;  // in any order (tickets.cuh)
  static constexpr bool kFromLast = Ordered || kBackground;  // tiles are walked from the last one to the first
  static constexpr bool kScheduler = false;                  // the producer takes the work items

  static constexpr int kHeadPanels = panels_of(HeadDim);
  static constexpr int kValuePanels = panels_of(ValueDim);
  static constexpr int kQPanelBytes = Br * kPanelRowBytes;
  static constexpr int kKvPanelBytes = Bc * kPanelRowBytes;

  // Registers a thread: what the block got at entry, shared out anew.
  static constexpr int kProducerRegisters = Warps == 16 ? 32 : 40;
  static constexpr int kApartRegisters = kApart ? 96 : 0;
  static constexpr int kConsumerRegisters = kApart ? 192 : kConsumers == 1 ? 248 : kConsumers == 2 ? 232 : 160;

  static_assert(
      kProducerRegisters + kApartRegisters + kConsumers * kConsumerRegisters <=
          kThreads / 128 * (65'536 / kThreads / 8 * 8),
      "who asks for more registers than the block got at entry waits for ever");
  static_assert(!kFinishes || kOrdered, "without an order nobody knows who adds last");
  static_assert(!kPrepares || kBackground, "a warp has to be left that makes lse2 and delta");
  static_assert(kConsumers >= 1 && kConsumers <= 3, "one to three consumer warpgroups");
  static_assert(HeadDim % 16 == 0 && HeadDim <= 256 && ValueDim % 16 == 0 && ValueDim <= 256, "widths of wgmma");
  static_assert(Br % 32 == 0 && Br <= 256 && Bc % 32 == 0 && Bc <= 256, "widths of wgmma");
};

}  // namespace omni
