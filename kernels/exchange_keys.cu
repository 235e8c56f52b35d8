// Keys and values between the GPUs of one host, which map each other's memory: each rank sends rows of its own to every
// other one, and gets theirs behind its own in one array. Gradients go back the same way.
//
// A channel of a rank works with the same channel of each peer, and with no other one. A thread block sends its rows,
// and another one takes those that come, meanwhile. Rows are put into one of two slots of the peer's memory, by turns,
// and move on from there. A flag says how many parts of them are there, counted over all calls. Call n writes to the
// slot of call n - 2 when each peer has begun call n - 1: then all of its call n - 2 has ended, since calls of a rank
// follow each other in its stream. The kernel itself counts calls, so that replays of a CUDA graph count, too.
#include "omni/exchange/copies.cuh"

namespace omni {

constexpr int kThreads = OMNI_THREADS, kAtOnce = OMNI_AT_ONCE;

class Channel {
 public:
  __device__ __forceinline__ Channel(ExchangeParams const& p, int channel, int* s_late)
      : p_(p), channel_(channel), s_late_(s_late), wide_(row_chunks(p)) {}

  // All that this rank sends, in parts.
  __device__ __forceinline__ void send() {
    begin(header(p_.rank)->sends);
    wait_for_peers(call_ - 1, [&](int) { return call_ > 1 ? 1 : 0; });
    int const steps = most_parts(p_.sent);
    for (int step = 0; step < steps; ++step) send(step);
    end(header(p_.rank)->sends);
  }

  // All that comes.
  __device__ __forceinline__ void receive() {
    begin(header(p_.rank)->receives);
    int const steps = most_parts(p_.received);
    for (int step = 0; step < steps; ++step) {
      receive(step);
      __syncthreads();
    }
    end(header(p_.rank)->receives);
  }

 private:
  struct Part {
    int first, count;
  };

  __device__ __forceinline__ void begin(u32 const* g_calls) {
    call_ = *const_cast<u32 const volatile*>(&g_calls[channel_]);
    slot_ = kHeaderBytes + call_ % 2 * p_.slot_bytes;
  }

  __device__ __forceinline__ void end(u32* g_calls) const {
    __syncthreads();
    if (threadIdx.x == 0) g_calls[channel_] = call_ + 1;
  }

  __device__ __forceinline__ ExchangeHeader* header(int rank) const {
    return reinterpret_cast<ExchangeHeader*>(p_.memory[rank]);
  }

  __device__ __forceinline__ uint4* slot_row(int rank, int row) const {
    return reinterpret_cast<uint4*>(p_.memory[rank] + slot_) + static_cast<i64>(row) * wide_;
  }

  // This channel's share of so many rows.
  __device__ __forceinline__ Part share(int rows) const {
    int const first = static_cast<int>(static_cast<i64>(rows) * channel_ / kChannels);
    return {first, static_cast<int>(static_cast<i64>(rows) * (channel_ + 1) / kChannels) - first};
  }

  __device__ __forceinline__ Part part(int rows, int step) const {
    Part const all = share(rows);
    int const begin = min(step * p_.part_rows, all.count);
    return {all.first + begin, min(p_.part_rows, all.count - begin)};
  }

  // One at least, so that a peer sees that this call has begun.
  __device__ __forceinline__ int parts(int rows) const {
    return max(1, (share(rows).count + p_.part_rows - 1) / p_.part_rows);
  }

  __device__ __forceinline__ int most_parts(int const* rows) const {
    int most = 1;
    for (int peer = 0; peer < p_.ranks; ++peer) most = max(most, parts(rows[peer]));
    return most;
  }

  // The peers of a rank, one a turn, and in each turn no two ranks have the same one. Channels begin at different
  // peers: all links to and from a rank are used at once, however much each peer gets.
  __device__ __forceinline__ int peer_of(int turn) const {
    return (p_.rank + 1 + (turn + channel_) % (p_.ranks - 1)) % p_.ranks;
  }

  __device__ __forceinline__ static int before(int const* rows, int peer) {
    int sum = 0;
    for (int one = 0; one < peer; ++one) sum += rows[one];
    return sum;
  }

  __device__ __forceinline__ void send(int step) {
    for (int turn = 0; turn < p_.ranks - 1; ++turn) {
      int const peer = peer_of(turn);
      Part const rows = part(p_.sent[peer], step);
      if (rows.count <= 0) continue;
      uint4* const to = slot_row(peer, p_.there[peer] + rows.first);
      int const first = before(p_.sent, peer) + rows.first;
      if (p_.places == nullptr) {
        copy_keys<kThreads, kAtOnce>(p_, rows.count, to, [&](int row) { return p_.first_row + first + row; });
      } else {
        copy_keys<kThreads, kAtOnce>(p_, rows.count, to, [&](int row) { return p_.places[first + row]; });
      }
    }
    __syncthreads();
    int const peer = threadIdx.x;
    if (peer >= p_.ranks || peer == p_.rank || step >= parts(p_.sent[peer])) return;
    fence_system();
    store_flag(&header(peer)->flags[p_.rank][channel_], call_ * kMostParts + step + 1);
  }

  __device__ __forceinline__ void receive(int step) {
    wait_for_peers(call_, [&](int peer) { return part(p_.received[peer], step).count > 0 ? step + 1 : 0; });
    for (int peer = 0; peer < p_.ranks; ++peer) {
      Part const rows = part(p_.received[peer], step);
      if (rows.count <= 0 || peer == p_.rank) continue;
      int const first = before(p_.received, peer) + rows.first;
      uint4* const to = static_cast<uint4*>(p_.out) + static_cast<i64>(p_.own_rows + first) * wide_;
      i64 const count = static_cast<i64>(rows.count) * wide_;
      if (s_late_[peer]) {
        fill_with_nan<kThreads>(to, count);
      } else {
        copy_arrived<kThreads, kAtOnce>(slot_row(p_.rank, first), to, count);
      }
    }
  }

  // Until each peer has said that parts_of(peer) parts of a call are there. One that is late is not waited for again.
  template <class PartsOf>
  __device__ __forceinline__ void wait_for_peers(u32 call, PartsOf const& parts_of) {
    int const peer = threadIdx.x;
    if (peer < p_.ranks && peer != p_.rank && !s_late_[peer]) {
      int const wanted = parts_of(peer);
      if (wanted > 0 && !comes(peer, call * kMostParts + wanted)) {
        s_late_[peer] = 1;
        store_flag(&header(p_.rank)->late[peer], 1);
        store_flag(p_.late, peer + 1);
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ bool comes(int peer, u32 wanted) const {
    u32 const* const g_flag = &header(p_.rank)->flags[peer][channel_];
    auto const is_there = [&] { return static_cast<int>(load_acquire(g_flag) - wanted) >= 0; };
    if (is_there()) return true;
    u32 const* const g_late = &header(p_.rank)->late[peer];  // other channels have waited for it, too
    u64 const begin = nanoseconds();
    do {
      if (is_there()) return true;
    } while (load_acquire(g_late) == 0 && nanoseconds() - begin < p_.limit_ns);
    return false;
  }

  ExchangeParams const& p_;
  int const channel_;
  int* const s_late_;  // of each peer, whether it did not come
  int const wide_;
  u32 call_;  // those before this one
  u64 slot_;
};

// A thread block's share of the channels, one after the other.
__device__ __forceinline__ void run_channels(ExchangeParams const& p, int block, bool sends, int* s_late) {
  if (threadIdx.x < kMostRanks) s_late[threadIdx.x] = 0;
  __syncthreads();
  int const stop = kChannels * (block + 1) / p.blocks;
  for (int at = kChannels * block / p.blocks; at < stop; ++at) {
    Channel channel(p, at, s_late);
    sends ? channel.send() : channel.receive();
  }
}

__device__ __forceinline__ void exchange(ExchangeParams const& p, unsigned char* s_memory) {
  let_next_kernel_come_up();  // it waits for the end of this one
  int const block = blockIdx.x, copies = block - 2 * p.blocks;
  if (copies < 0) {
    bool const sends = block < p.blocks;  // those in front wait for no other thread block of this rank
    return run_channels(p, sends ? block : block - p.blocks, sends, reinterpret_cast<int*>(s_memory));
  }
  i64 const others = gridDim.x - 2 * p.blocks, own_rows = p.own_rows;
  int const first = static_cast<int>(own_rows * copies / others);
  int const stop = static_cast<int>(own_rows * (copies + 1) / others);
  uint4* const to = static_cast<uint4*>(p.out) + static_cast<i64>(first) * row_chunks(p);
  copy_keys<kThreads, kAtOnce>(p, stop - first, to, [&](int row) { return p.own_first + first + row; });
}

}  // namespace omni

static_assert(sizeof(omni::ExchangeParams) == OMNI_PARAMS_BYTES, "params.py and exchange/params.cuh disagree");

extern __shared__ unsigned char s_memory[];

extern "C" __global__ void __launch_bounds__(OMNI_THREADS, 2)
    exchange_keys(const __grid_constant__ omni::ExchangeParams p) {
  omni::exchange(p, s_memory);
}
