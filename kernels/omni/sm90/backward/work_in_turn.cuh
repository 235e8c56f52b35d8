// Work items in other orders than work.cuh has: where heads take turns at the places of sums of dQ, and where only the
// last heads have tiers.
#pragma once

#include "omni/sm90/backward/config.cuh"
#include "omni/work.cuh"

namespace omni {

// Heads of keys side by side, all that there are of them.
struct HeadRange {
  int first, count;
};

// Index among the items of parts `first` to `end` of some heads, section by section.
__device__ __forceinline__ WorkItem
item_of_heads(BackwardParamsSm90 const& args, HeadRange heads, int first, int end, int index) {
  ForwardParams const& p = args.b.p;
  int const in_front = index / ((end - first) * p.section) * p.section;  // heads of the sections in front
  int const width = min(p.section, heads.count - in_front);
  index -= in_front * (end - first);
  int const rank = index / width, head = heads.first + in_front + index - rank * width;
  int4 const part = p.lists.parts[first + rank];
  WorkItem work;
  work.q0 = part.x;
  work.mask = part.y;
  work.batch = p.mask_batch == 1 ? head / args.b.kv_heads : part.y;
  work.head = p.mask_batch == 1 ? head % args.b.kv_heads : head;
  work.first = part.z;
  work.tiles = part.w;
  work.part = first + rank;
  return work;
}

// Tier by tier, of some heads. ahead: parts ahead of these.
__device__ __forceinline__ WorkItem
item_of_tiers(BackwardParamsSm90 const& args, HeadRange heads, int ahead, int index) {
  ForwardParams const& p = args.b.p;
  int first = 0, end = p.tiers[0];
#pragma unroll
  for (int i = 0; i < kTiers - 1; ++i) {
    if (index >= heads.count * p.tiers[i]) {
      first = p.tiers[i];
      end = p.tiers[i + 1];
    }
  }
  return item_of_heads(args, heads, ahead + first, ahead + end, index - heads.count * first);
}

__device__ __forceinline__ int heads_of_keys(BackwardParamsSm90 const& args) {
  return args.b.kv_heads * (args.b.p.batch / args.b.p.mask_batch);
}

// What the heads of one turn have to do is handed out before anything of the next turn is.
__device__ __forceinline__ WorkItem work_item_in_turn(BackwardParamsSm90 const& args, int index) {
  int const parts = args.b.p.tiers[kTiers - 1];
  int const heads_before = index / (parts * args.turn_heads) * args.turn_heads;
  int const heads = min(args.turn_heads, heads_of_keys(args) - heads_before);
  return item_of_tiers(args, HeadRange{heads_before, heads}, 0, index - heads_before * parts);
}

// What the early heads have to do is handed out section by section, so that their sums of dQ have had their additions
// long before the launch ends; the last heads have tiers, so that it ends with short parts.
__device__ __forceinline__ WorkItem work_item_with_early_heads(BackwardParamsSm90 const& args, int index) {
  int const parts = args.b.p.tiers[kTiers - 1], early = args.early_heads;
  int const rest = index - early * parts;
  if (rest < 0) return item_of_heads(args, HeadRange{0, early}, 0, parts, index);
  return item_of_tiers(args, HeadRange{early, heads_of_keys(args) - early}, early > 0 ? parts : 0, rest);
}

}  // namespace omni
