// One function, one instruction, named after it (PTX ISA 8.x: mbarrier, cp.async.bulk.tensor, wgmma, setmaxnreg).
#pragma once

#include "omni/sm90/global.cuh"

namespace omni {

__device__ __forceinline__ void mbarrier_init(u32 s_barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(s_barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 s_barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(s_barrier) : "memory");
}

// Arrives for the thread when all copies that it has started (cp.async) are there.
__device__ __forceinline__ void mbarrier_arrive_when_copied(u32 s_barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(s_barrier) : "memory");
}

// Arrives, and returns when all others of the phase have.
__device__ __forceinline__ void mbarrier_meet(u32 s_barrier) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      ".reg .b64 phase;\n"
      "mbarrier.arrive.release.cta.shared::cta.b64 phase, [%0];\n"
      "again:\n"
      "mbarrier.try_wait.shared::cta.b64 done, [%0], phase;\n"
      "@!done bra again;\n"
      "}" ::"r"(s_barrier)
      : "memory");
}

__device__ __forceinline__ void mbarrier_expect_tx(u32 s_barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(s_barrier), "r"(bytes)
               : "memory");
}

// Returns when the phase of the given parity has completed.
__device__ __forceinline__ void mbarrier_wait(u32 s_barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(s_barrier),
      "r"(parity)
      : "memory");
}

// Has that phase ended?
__device__ __forceinline__ bool mbarrier_has_ended(u32 s_barrier, int parity) {
  int done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.s32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(s_barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void prefetch_tensormap(void const* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One box of a (column, token, head, batch) tensor to shared memory, by its tensor map; completes on the barrier.
__device__ __forceinline__ void tma_load_4d(
    u32 s_target, void const* map, u32 s_barrier, int column, int token, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(s_target),
      "l"(map), "r"(s_barrier), "r"(column), "r"(token), "r"(head), "r"(batch)
      : "memory");
}

// One box of a (column, head of its group, token, group, batch) tensor.
__device__ __forceinline__ void tma_load_5d(
    u32 s_target, void const* map, u32 s_barrier, int column, int head, int token, int group, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(s_target),
      "l"(map), "r"(s_barrier), "r"(column), "r"(head), "r"(token), "r"(group), "r"(batch)
      : "memory");
}

// Two neighbouring floats. Volatile, so that they are read where they are used: registers are dearer than the latency.
__device__ __forceinline__ float2 load_shared_pair(float const* s_pair) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(smem_address(s_pair)) : "memory");
  return pair;
}

__device__ __forceinline__ i64 load_shared_i64(i64 const* s_source) {
  i64 v;
  asm volatile("ld.shared.s64 %0, [%1];" : "=l"(v) : "r"(smem_address(s_source)) : "memory");
  return v;
}

// `bytes` contiguous bytes, a multiple of 16, to shared memory; completes on the barrier.
__device__ __forceinline__ void bulk_load(u32 s_target, void const* g_source, int bytes, u32 s_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(s_target),
      "l"(g_source), "r"(bytes), "r"(s_barrier)
      : "memory");
}

// Adds `bytes` contiguous bytes of floats, a multiple of 16, to global memory, or stores them there; this thread's
// groups of such copies are committed, and waited for until shared memory was read, or until all is written.
__device__ __forceinline__ void bulk_add(float* g_target, u32 s_source, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(g_target),
               "r"(s_source), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_store(float* g_target, u32 s_source, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(g_target), "r"(s_source), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

__device__ __forceinline__ void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// All but the kPending newest groups.
template <int kPending = 0>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void store_shared(u32 s_target, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(s_target), "f"(x) : "memory");
}

__device__ __forceinline__ void store_shared4(u32 s_target, float const* x) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(s_target), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
}

// Four 8 x 8 matrices of pairs to shared memory, transposed; a row address a lane.
__device__ __forceinline__ void stmatrix_x4_trans(u32 s_row, u32 const* pairs) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(s_row), "r"(pairs[0]),
               "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
               : "memory");
}

// The four e4m3 of a word, lowest first, as float32: cvt.rn.f16x2.e4m3x2 and cvt.f32.f16, both exact.
__device__ __forceinline__ float4 cvt_f32x4_e4m3x4(u32 four) {
  float4 x;
  asm("{\n"
      ".reg .b16 low, high, a, b, c, d;\n"
      ".reg .b32 ab, cd;\n"
      "mov.b32 {low, high}, %4;\n"
      "cvt.rn.f16x2.e4m3x2 ab, low;\n"
      "cvt.rn.f16x2.e4m3x2 cd, high;\n"
      "mov.b32 {a, b}, ab;\n"
      "mov.b32 {c, d}, cd;\n"
      "cvt.f32.f16 %0, a;\n"
      "cvt.f32.f16 %1, b;\n"
      "cvt.f32.f16 %2, c;\n"
      "cvt.f32.f16 %3, d;\n"
      "}"
      : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
      : "r"(four));
  return x;
}

// Makes this thread's ordinary writes to shared memory visible to the tensor cores and the copy engine.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same for what lies in global memory, both ways: the copy engine's writes that were waited for come before this
// thread's ordinary ones behind the fence, and what it has seen before what the copy engine does then.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Numbers of shared memory that another thread of the block changes meanwhile.
__device__ __forceinline__ int load_shared_volatile(u32 s_source) {
  int v;
  asm volatile("ld.volatile.shared.s32 %0, [%1];" : "=r"(v) : "r"(s_source) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_volatile(u32 s_target, int x) {
  asm volatile("st.volatile.shared.s32 [%0], %1;" ::"r"(s_target), "r"(x) : "memory");
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// At most kPending of the newest groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Programmatic dependent launch: returns when the kernel ahead in the stream has ended, its writes
// visible; at once where there is none or the launch is an ordinary one.
__device__ __forceinline__ void wait_for_kernel_ahead() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// From when all thread blocks have said so, those of the next kernel may come up.
__device__ __forceinline__ void let_next_kernel_come() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Named barriers. A number in a register makes ptxas reserve all sixteen, of which one block a multiprocessor has
// plenty.
template <int kThreads>
__device__ __forceinline__ void bar_sync(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

template <int kThreads>
__device__ __forceinline__ void bar_arrive(int barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// Does any of the threads say so?
template <int kThreads>
__device__ __forceinline__ bool bar_any(int barrier, bool said) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred said, any;\n"
      "setp.ne.s32 said, %2, 0;\n"
      "bar.red.or.pred any, %1, %3, said;\n"
      "selp.s32 %0, 1, 0, any;\n"
      "}"
      : "=r"(any)
      : "r"(barrier), "r"(static_cast<int>(said)), "n"(kThreads)
      : "memory");
  return any != 0;
}

}  // namespace omni
