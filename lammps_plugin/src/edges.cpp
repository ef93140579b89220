#include "edges.h"

#include "neigh_list.h"

#include <algorithm>
#include <cmath>

using namespace LAMMPS_NS;

void triforces::Edges::build(const NeighList *list, const double *x, const Rows &rows, double cutoff, bool mirror_ghosts)
{
  int64_t candidates = 0;
  for (int k = 0; k < list->inum; ++k) candidates += list->numneigh[list->ilist[k]];
  reserve(candidates + 1);    // one more: the loop below writes before it knows whether the pair counts

  const double limit = cutoff * cutoff;
  int64_t *row_of_neighbour = index_.data();
  int64_t e = 0;
  int any_row = 0;    // its sign bit gathers those of all rows
  double closest = limit;
  centre_.assign(list->ilist, list->ilist + list->inum);
  first_.resize(list->inum + 1);
  for (int k = 0; k < list->inum; ++k) {
    const int i = list->ilist[k];
    const int *neighbours = list->firstneigh[i];
    const double xi = x[3 * i], yi = x[3 * i + 1], zi = x[3 * i + 2];
    first_[k] = e;
    any_row |= rows.row[i];
    for (int n = 0; n < list->numneigh[i]; ++n) {
      const int j = neighbours[n] & NEIGHMASK;
      const double dx = x[3 * j] - xi, dy = x[3 * j + 1] - yi, dz = x[3 * j + 2] - zi;
      row_of_neighbour[e] = rows.row[j];
      neighbour_[e] = j;
      any_row |= rows.row[j];
      vector_[3 * e] = dx;
      vector_[3 * e + 1] = dy;
      vector_[3 * e + 2] = dz;
      const double distance2 = dx * dx + dy * dy + dz * dz;
      closest = std::min(closest, distance2);
      e += distance2 < limit;    // no branch to mispredict: a pair too long is written over
    }
  }
  first_[list->inum] = e;
  count_ = e;
  knows_stranger_ = any_row < 0;
  shortest_ = std::sqrt(closest);
  mirrored_.clear();
  if (mirror_ghosts) mirror(rows);

  int64_t *row_of_centre = index_.data() + size();
  for (int k = 0; k < list->inum; ++k) std::fill(row_of_centre + first_[k], row_of_centre + first_[k + 1], rows.row[centre_[k]]);
  for (size_t m = 0; m < mirrored_.size(); ++m) row_of_centre[count_ + m] = index_[mirrored_[m].edge];
}

void triforces::Edges::mirror(const Rows &rows)
{
  for (size_t k = 0; k < centre_.size(); ++k)
    for (int64_t e = first_[k]; e < first_[k + 1]; ++e)
      if (index_[e] >= rows.owned) mirrored_.push_back({e, centre_[k]});
  reserve(size());
  for (size_t m = 0; m < mirrored_.size(); ++m) {
    index_[count_ + m] = rows.row[mirrored_[m].centre];
    for (int d = 0; d < 3; ++d) vector_[3 * (count_ + m) + d] = -vector_[3 * mirrored_[m].edge + d];
  }
}

void triforces::Edges::reserve(int64_t pairs)
{
  const size_t n = static_cast<size_t>(pairs);
  if (neighbour_.size() >= n) return;
  const size_t roomy = n + n / 8;    // so that a fluctuating number of pairs does not allocate at every step
  index_.resize(2 * roomy);
  vector_.resize(3 * roomy);
  neighbour_.resize(roomy);
}

double triforces::Edges::bytes() const
{
  return 8.0 * (index_.capacity() + vector_.capacity() + first_.capacity()) +
      4.0 * (neighbour_.capacity() + centre_.capacity()) + sizeof(Mirror) * mirrored_.capacity();
}
