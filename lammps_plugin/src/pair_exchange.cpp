// The exchange of ghost rows: PairTriforces' side of LAMMPS' forward and reverse communication.
#include "pair_triforces.h"

#include "comm.h"

#include <algorithm>
#include <cstring>

using namespace LAMMPS_NS;
using triforces::PairTriforces;

int32_t PairTriforces::exchange(void *pair, int32_t adjoint, int32_t item_size, int64_t width, void *rows)
{
  auto *self = static_cast<PairTriforces *>(pair);
  try {
    self->swap_rows(adjoint != 0, item_size, width, static_cast<char *>(rows));
    return TF_OK;
  } catch (...) {    // must not unwind through Python's frames
    self->thrown_ = std::current_exception();
    return TF_FAILED;
  }
}

int32_t PairTriforces::sum(void *pair, int64_t count, double *values)
{
  auto *self = static_cast<PairTriforces *>(pair);
  return MPI_Allreduce(MPI_IN_PLACE, values, static_cast<int>(count), MPI_DOUBLE, MPI_SUM, self->world) == MPI_SUCCESS
      ? TF_OK
      : TF_FAILED;
}

void PairTriforces::swap_rows(bool adjoint, int item_size, int64_t width, char *rows)
{
  const size_t stride = static_cast<size_t>(width) * item_size;
  const size_t piece = sizeof(double) * comm_forward;
  for (size_t start = 0; start < stride; start += piece) {
    columns_.data = rows + start;
    columns_.stride = stride;
    columns_.bytes = std::min(piece, stride - start);
    columns_.item_size = item_size;
    if (adjoint)
      comm->reverse_comm(this, columns_.doubles());
    else
      comm->forward_comm(this, columns_.doubles());
  }
}

// Single-precision rows travel two to a double, so a message is as long as its content.
int PairTriforces::pack_forward_comm(int n, int *list, double *buffer, int, int *)
{
  const int size = sharing_owners_ ? 2 : columns_.doubles();
  for (int k = 0; k < n; ++k, buffer += size) {
    const int r = rows_.row[list[k]];
    if (sharing_owners_)
      std::copy_n(&rows_.owner[2 * list[k]], 2, buffer);
    else if (r >= 0)
      memcpy(buffer, columns_.of(r), columns_.bytes);
  }
  return n * size;
}

void PairTriforces::unpack_forward_comm(int n, int first, double *buffer)
{
  const int size = sharing_owners_ ? 2 : columns_.doubles();
  step_.moved += sizeof(double) * static_cast<int64_t>(n) * size;
  for (int i = first; i < first + n; ++i, buffer += size) {
    if (sharing_owners_)
      std::copy_n(buffer, 2, &rows_.owner[2 * i]);
    else if (rows_.is_foreign(i))    // a folded ghost would write its owner's row over itself
      memcpy(columns_.of(rows_.row[i]), buffer, columns_.bytes);
  }
}

// A row is cleared as it is sent, so that of several ghosts that share it each sends only what was added since the last;
// the ghost that LAMMPS received first sends last, when all that passes through this rank has arrived.
int PairTriforces::pack_reverse_comm(int n, int first, double *buffer)
{
  const int size = columns_.doubles();
  step_.moved += sizeof(double) * static_cast<int64_t>(n) * size;
  for (int i = first; i < first + n; ++i, buffer += size) {
    if (rows_.is_foreign(i)) {
      memcpy(buffer, columns_.of(rows_.row[i]), columns_.bytes);
      memset(columns_.of(rows_.row[i]), 0, columns_.bytes);
    } else
      memset(buffer, 0, columns_.bytes);
  }
  return n * size;
}

namespace {

template <typename Number> void add(char *row, const double *buffer, size_t bytes)
{
  auto *to = reinterpret_cast<Number *>(row);
  const auto *from = reinterpret_cast<const Number *>(buffer);
  for (size_t k = 0; k < bytes / sizeof(Number); ++k) to[k] += from[k];
}

}    // namespace

void PairTriforces::unpack_reverse_comm(int n, int *list, double *buffer)
{
  const int size = columns_.doubles();
  for (int k = 0; k < n; ++k, buffer += size) {
    const int r = rows_.row[list[k]];
    if (r < 0) continue;
    if (columns_.item_size == 4)
      add<float>(columns_.of(r), buffer, columns_.bytes);
    else
      add<double>(columns_.of(r), buffer, columns_.bytes);
  }
}
