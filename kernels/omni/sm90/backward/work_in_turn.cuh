// Work items where heads take turns at the places of sums of dQ: what the heads of one turn have to do is handed out
// before anything of the next turn is, tier by tier as elsewhere.
#pragma once

#include "omni/sm90/backward/config.cuh"
#include "omni/work.cuh"

namespace omni {

// As work_item_among, of heads of keys.
__device__ __forceinline__ WorkItem work_item_in_turn(BackwardParamsSm90 const& args, int index) {
  ForwardParams const& p = args.b.p;
  int const parts = p.tiers[kTiers - 1], heads_before = index / (parts * args.turn_heads) * args.turn_heads;
  int const heads = min(args.turn_heads, args.b.kv_heads * (p.batch / p.mask_batch) - heads_before);
  index -= heads_before * parts;
  int first = 0, end = p.tiers[0];
#pragma unroll
  for (int i = 0; i < kTiers - 1; ++i) {
    if (index >= heads * p.tiers[i]) {
      first = p.tiers[i];
      end = p.tiers[i + 1];
    }
  }
  index -= heads * first;
  int const in_front = index / ((end - first) * p.section) * p.section;  // heads of the sections in front
  int const width = min(p.section, heads - in_front);
  index -= in_front * (end - first);
  int const rank = index / width, head = heads_before + in_front + index - rank * width;
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

}  // namespace omni
