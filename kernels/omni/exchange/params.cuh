// The exchange of rows between the GPUs of one host: what a launch passes, and what memory that peers map holds.
#pragma once

#include "omni/params.cuh"

namespace omni {

constexpr int kMostRanks = 16;
// Each sends and receives an equal share of the rows of every pair of ranks, and has flags and numbers of its own.
constexpr int kChannels = 64;
constexpr int kMostParts = 64;  // of a share; each has a flag, so that it is read while the next one is written
constexpr int kMostSides = 2;   // arrays whose columns travel side by side: k and v

// Steps are in units of 16 bytes.
struct ExchangeParams {
  void const* given[kMostSides];  // (batch, heads, keys, columns)
  Strides strides[kMostSides];
  int const* places;  // the key of each row that is sent, by target; null where they are first_row, first_row + 1, ...
  void* out;          // (own_rows + rows that come, batch, heads, columns of both)
  unsigned char* memory[kMostRanks];  // that of each rank, as this one has mapped it
  u64 slot_bytes;                     // rows are in one of two slots, by turns
  u64 limit_ns;                       // to wait for a peer
  u32* late;                          // of the host: the first peer that did not come in time, plus 1
  int chunks[kMostSides];             // of 16 bytes in a row of each array
  int batch, heads;
  int first_row;
  int own_first, own_rows;                     // keys that are copied to the front of `out`
  int sent[kMostRanks], received[kMostRanks];  // rows to and from each rank
  int there[kMostRanks];                       // the row of each peer's slot where those of this rank begin
  int rank, ranks;
  int part_rows;  // of a share, but for the last part
  int blocks;     // that send; as many behind them receive, and the others copy own rows
};

// Memory of a rank begins with this; two slots follow.
struct ExchangeHeader {
  u32 sends[kChannels];              // calls of this rank whose rows have been sent
  u32 late[kChannels];               // by rank: 1 once it did not come in time; then it is not waited for again
  u32 flags[kMostRanks][kChannels];  // of each rank, written by it: parts that are there to be read, of all calls
  u32 receives[kChannels];           // calls of this rank whose rows have come
};

constexpr int kHeaderBytes = 8192;
static_assert(sizeof(ExchangeHeader) <= kHeaderBytes, "slots lie behind it");

}  // namespace omni
