// Who brings keys and values in pages that no box fills: a warp the keys, another one the values, and a thread Q; the
// scheduler takes the work items. A warp copies 16 bytes a thread, eight threads a row, to where the copy engine would
// put them. Where rows are it looks up a tile ahead, a lane a key, and writes to shared memory, from where all lanes
// read it. Who waits for whom:
//
//  these warps: work_full, on which the scheduler arrives, k_empty, v_empty and q_empty, on which consumers arrive.
//  consumers: k_full and v_full, on which each thread of a warp arrives when its copies are there, and on k_full the
//    warp once more, which releases what it wrote about the keys; q_full, on which the copy engine arrives. A fence of
//    the consumers' shows copies of threads to wgmma.
//  scheduler: work_empty, on which they arrive beside the consumers, and work_wanted, on which the warp of keys does.
#pragma once

#include "omni/sm80/ptx.cuh"
#include "omni/sm90/forward/producer.cuh"
#include "omni/sm90/paged/config.cuh"

namespace omni {

// What finds rows and copies them, by any such warp. Beside two and three warpgroups of consumers it differs in:
//
//  find(entries, tile, sequence): the entries of the lane's keys of a tile, which are not looked at before they are
//    needed, a tile later.
//  locate<kOfKeys>(s_rows, entries, tile, kv_head, none): where a tile's rows begin, for all lanes. none: keys that
//    have no page. Returns whether each row is somewhere.
//  copy<kPanels>(s_tile, s_rows, columns, whole): these rows. whole: what locate returned.
template <class Cfg>
struct CopiedRows : Producer<Cfg> {
  using Config = Cfg;
  using Smem = ForwardSmem<Cfg>;
  static constexpr int kWords = Cfg::kBc / 32;
  static constexpr int kRows = 4;  // that a warp copies in one instruction
  static constexpr int kNone = 1;  // added to addresses of rows that are not anywhere
  static_assert(Cfg::kStages >= 2 && kSmemSpans >= 2, "room for addresses of keys and of values");

  __device__ __forceinline__ CopiedRows(ForwardParamsSm90 const& params, Smem& memory)
      : Producer<Cfg>(params, memory) {}
};

// The warps. Rows: CopiedRows with the three functions.
template <class Rows>
struct CopyingWarps : Rows {
  using Cfg = typename Rows::Config;
  using Of = Producer<Cfg>;
  using Rows::kWords;
  static constexpr int kKeysWarp = 0, kValuesWarp = 2, kQueriesWarp = 3;  // the scheduler is in another one

  __device__ __forceinline__ CopyingWarps(ForwardParamsSm90 const& params, typename Rows::Smem& memory)
      : Rows(params, memory) {}

  __device__ __forceinline__ void run(int warp) {
    if (warp == kKeysWarp) {
      run_tiles<true>();
    } else if (warp == kValuesWarp) {
      run_tiles<false>();
    } else if (warp == kQueriesWarp) {
      if (lane_id() == 0) this->run_for_queries();
    }
  }

 private:
  // Field by field: a Tile has padding, which else would be kept in registers.
  __device__ __forceinline__ static Tile copy_of(Tile const& tile) {
    return Tile{tile.packed, tile.payload, tile.first};
  }

  __device__ __forceinline__ typename Of::Walk walk_of() const {
    typename Of::Walk const& s_walk = this->smem.walks[this->slot.stage()];
    typename Of::Walk walk(this->args.p.lists, s_walk.index, 0);
    walk.next = copy_of(s_walk.next);
    return walk;
  }

  // Tells consumers about the tile that comes to a stage.
  __device__ __forceinline__ void describe(int stage, Tile const& tile, u32 const (&none)[kWords]) const {
    if (lane_id() != 0) return;
#pragma unroll
    for (int w = 0; w < kWords; ++w) this->smem.units_of_no_page(stage)[w] = none[w];
    this->smem.tiles[stage] = tile;
    mbarrier_arrive(smem_address(&this->smem.k_full[stage]));
  }

  template <bool kOfKeys>
  __device__ __forceinline__ void run_tiles() {
    constexpr int kPanels = kOfKeys ? Cfg::kPanels : Cfg::kValuePanels;
    RingIndex<Cfg::kStages> ring;
    i64* const s_rows = reinterpret_cast<i64*>(this->smem.spans[kOfKeys ? 0 : 1][1]);
    wait_for_kernel_ahead();
#pragma unroll 1
    while (true) {
      this->wait_for_item(this->slot);
      WorkSlot const& work = this->work(this->slot);
      if (work.head < 0) break;
      typename Of::Walk walk = walk_of();
      int left = work.tiles;
      if (kOfKeys && left < Of::kAskAt) ask();
      Tile next{};
      int entries[kWords];
      if (left != 0) {
        next = copy_of(walk.take(this->args.p.lists));
        this->find(entries, next, work.mask);
      }
#pragma unroll 1
      for (; left > 0; --left) {
        if (kOfKeys && left == Of::kAskAt) ask();
        Tile const tile = copy_of(next);
        int const stage = ring.stage();
        u32 none[kWords];
        bool const whole = this->template locate<kOfKeys>(s_rows, entries, tile, work.kv_head, none);
        if (left > 1) {
          next = copy_of(walk.take(this->args.p.lists));
          this->find(entries, next, work.mask);
        }
        u64* const full = kOfKeys ? &this->smem.k_full[stage] : &this->smem.v_full[stage];
        mbarrier_wait(
            smem_address(kOfKeys ? &this->smem.k_empty[stage] : &this->smem.v_empty[stage]), ring.parity() ^ 1);
        u32 const s_tile = smem_address(kOfKeys ? this->smem.k[stage] : this->smem.v[stage]);
        int const columns = kOfKeys ? this->args.p.head_dim : value_columns<Cfg>(this->args.p);
        this->template copy<kPanels>(s_tile, s_rows, columns, whole);
        mbarrier_arrive_when_copied(smem_address(full));
        if constexpr (kOfKeys) describe(stage, tile, none);
        ring.next();
      }
      release(this->smem.work_empty[this->slot.stage()]);
      this->slot.next();
    }
    let_next_kernel_come();
  }

  __device__ __forceinline__ void ask() const {
    if (this->leads()) mbarrier_arrive(smem_address(&this->smem.work_wanted));
  }
};

}  // namespace omni
