// What the Hopper forward kernel is launched with, and its compile-time shape: one producer warpgroup, kConsumers
// consumer warpgroups of 64 query rows, and for some caches one or two more, which bring keys and values.
#pragma once

#include "omni/mma_atom.cuh"
#include "omni/numbers.cuh"
#include "omni/sm90/forward/tail.cuh"

namespace omni {

struct ForwardParamsSm90 {
  TensorMap q_map, k_map, v_map;
  ForwardParams p;
  int* counter;        // {next work item, thread blocks that handed out all, that ended}: zero at launch, left zero
  float4* partials;    // (all heads, n_slots, warps): what parts of split block rows leave; see merge.cuh, packed.cuh
  u32* arrivals;       // (all heads, n_split_rows, warps): zero at launch, left zero; of packed tiles one for all warps
  int4 const* splits;  // of each part: {row among the split ones or -1, its number, parts of the row, first slot}
  int work_items, n_slots, n_split_rows;
  int most_entries;    // of calls on caches: entries that each part has room for, so that its first one is known ahead
  int const* n_parts;  // of calls on caches: how many parts the planner made; null for others
};

template <
    int HeadDim, int ValueDim, int Br, int Bc, int Stages, int Warps, int QSlots, bool PingPong, bool Pack, bool Bf16,
    bool Softcap, bool Cached, int Page, bool Ragged, int Converters, int Blocks, bool Scheduler, bool Narrow,
    class Atom>
struct Sm90Config : Atom {
  static constexpr int kHeadDim = HeadDim;    // columns of Q and K
  static constexpr int kValueDim = ValueDim;  // columns of V and O
  static constexpr int kBr = Br;
  static constexpr int kBc = Bc;
  static constexpr int kStages = Stages;
  static constexpr bool kBf16 = Bf16;
  static constexpr bool kSoftcap = Softcap;
  // Thread blocks a multiprocessor, each with its own items: what one waits for, another computes beside.
  static constexpr int kBlocks = Blocks;
  static constexpr int kConsumers = Warps / 4 - 1;
  static constexpr int kQRows = 64 * kConsumers;
  // Query heads of one group that lie in a tile one below the other, each a warpgroup's: they read K and V once.
  static constexpr int kHeads = kQRows / Br;
  // K and V are e4m3: so many warps behind the consumers' bring and convert them (converter.cuh).
  static constexpr bool kFp8 = Converters != 0;
  static constexpr bool kSplitWeights = ValueDim <= kSplitWeightsDim;
  // Two where shared memory has room: the next item's Q is loaded while this one is worked on.
  static constexpr int kQSlots = QSlots;
  static constexpr bool kPingPong = PingPong && kConsumers > 1;
  // Heads of a group share a tile, row by row, as many as the parameters say.
  static constexpr bool kPack = Pack;
  // The block lists are written by the kernel ahead (attention_plan_cached.cu), which also counts the parts.
  static constexpr bool kCached = Cached;
  // Keys of a box, where K and V are pools of pages, of e4m3 1; 0 where they are not. A warp produces then.
  static constexpr int kPage = Page;
  static constexpr bool kPaged = Page != 0;
  static constexpr bool kKeyByKey = Page == 1 && !kFp8;  // by threads rather than the copy engine
  // Sequences have numbers of rows of their own.
  static constexpr bool kRagged = Ragged;
  // A thread beside the producer takes the work items; beside three warpgroups, where registers are lacking, only if
  // items are so short that it pays.
  static constexpr bool kScheduler = kConsumers < 3 || Scheduler;
  // Warps behind the consumers' that bring K and V: they convert, or load pages.
  static constexpr int kApartWarps = kFp8 ? Converters : kPaged && kConsumers == 1 ? 4 : 0;
  static constexpr bool kApart = kApartWarps != 0;
  // Warps that load pages (page_loader.cuh): those, or the ones beside the scheduler's.
  static constexpr int kLoaders = !kPaged || kFp8 || !kScheduler ? 0 : kApart ? kApartWarps : 3;
  static constexpr int kFillers = kFp8 ? Converters : kLoaders != 0 ? kLoaders : 1;  // warps that bring a tile
  static constexpr int kWalkers = kFp8 ? 2 : kFillers;  // warps that read where an item's tiles are
  static constexpr int kThreads = 32 * (Warps + kApartWarps);

  // Columns in narrow panels (tail.cuh), of Q and K, and of V.
  static constexpr int kTail = Narrow ? tail_columns(HeadDim) : 0;
  static constexpr int kValueTail = Narrow ? tail_columns(ValueDim) : 0;
  static constexpr bool kTails = kTail != 0 || kValueTail != 0;
  static constexpr int kPanels = (HeadDim - kTail + kPanelColumns - 1) / kPanelColumns;  // of Q and K, of 64 columns
  static constexpr int kValuePanels = (ValueDim - kValueTail + kPanelColumns - 1) / kPanelColumns;
  static constexpr int kQPanelBytes = kQRows * kPanelRowBytes;
  static constexpr int kKvPanelBytes = Bc * kPanelRowBytes;
  static constexpr int kQBytes = kPanels * kQPanelBytes + kQRows * 2 * kTail;
  static constexpr int kKBytes = kPanels * kKvPanelBytes + Bc * 2 * kTail;
  static constexpr int kVBytes = kValuePanels * kKvPanelBytes + Bc * 2 * kValueTail;

  // Registers a thread: what the block got at entry, shared out anew. Of two consumers beside warps that load pages:
  static constexpr int kLoadingConsumers = HeadDim > 128 || ValueDim > 128 ? 216 : 208;
  static constexpr int kEntryRegisters = 65536 / (kThreads * kBlocks) / 8 * 8;
  static constexpr int kProducerRegisters = kBlocks > 1               ? (kConsumers == 2 ? 32 : 40)
                                            : kFp8                    ? 64
                                            : kConsumers == 3         ? 32
                                            : kLoaders == 0 || kApart ? 40
                                                                      : 504 - 2 * kLoadingConsumers;
  static constexpr int kApartRegisters = kApartWarps == 8 ? 112 : kFp8 ? 192 : 160;
  static constexpr int kRestRegisters = kThreads / 128 * kEntryRegisters - kProducerRegisters;
  static constexpr int kConsumerRegisters = kBlocks > 1        ? kRestRegisters / kConsumers / 8 * 8
                                            : kApartWarps == 8 ? 224
                                            : kConsumers == 1  ? 248
                                            : kConsumers == 3  ? 160
                                            : kLoaders != 0    ? kLoadingConsumers
                                                               : 232;

  static_assert(
      kProducerRegisters + kConsumers * kConsumerRegisters + kApartWarps / 4 * kApartRegisters <=
          kThreads / 128 * kEntryRegisters,
      "who asks for more registers than the block got at entry waits for ever");
  static_assert(kBlocks == 1 || (!kCached && !kPack && kConsumers < 3), "registers beside other thread blocks");
  static_assert(!kScheduler || kConsumers < 3 || !kCached, "registers of a scheduler beside three warpgroups");
  static_assert(!kKeyByKey || kConsumers < 3, "registers for threads that copy");
  static_assert(kConsumers >= 1 && kConsumers <= 3, "64 query rows a consumer warpgroup");
  static_assert(Br == kQRows || Br == 64, "one head in a tile, or one a warpgroup");
  static_assert(
      !kPaged || kFp8 || (Cached && Bc % Page == 0 && (kKeyByKey || Page % 8 == 0) && Page <= 64),
      "boxes fill tiles and pages");
  static_assert(!kFp8 || (Cached && kConsumers == 1), "registers for warps that convert");
  static_assert(Converters % 4 == 0 && Converters <= 8, "warpgroups that convert");
  static_assert(!Ragged || Cached, "the planner finds out where rows are");
  static_assert(!Pack || kConsumers == 1, "packed tiles have 64 rows");
  static_assert(!kTails || (!kCached && !kPack), "who else loads knows no narrow panels");
  static_assert(HeadDim % 16 == 0 && HeadDim <= 256, "columns of Q and K");
  static_assert(ValueDim % 16 == 0 && ValueDim <= 256 && Bc % 32 == 0 && Bc <= 256, "widths of wgmma");
};

}  // namespace omni
