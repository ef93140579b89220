#ifndef TRIFORCES_EDGES_H
#define TRIFORCES_EDGES_H

#include "rows.h"

#include <cstdint>
#include <vector>

namespace LAMMPS_NS {
class NeighList;
}

namespace triforces {

// The directed pairs of the owned centres closer than the cutoff, and the pair forces that come back.
//
// An edge has its centre's and its neighbour's row, the neighbour's own index j (a ghost, possibly one of several that
// share a row) and r = x_j - x_i. Where the model reads both directions of an edge, an edge to a ghost row is followed,
// behind all others, by its mirror image: centre and neighbour exchanged, -r.
class Edges {
 public:
  void build(const LAMMPS_NS::NeighList *list, const double *x, const Rows &rows, double cutoff, bool mirror_ghosts);

  int64_t size() const { return count_ + static_cast<int64_t>(mirrored_.size()); }
  const int64_t *index() const { return index_.data(); }
  const double *vector() const { return vector_.data(); }

  double shortest() const { return shortest_; }              // distance of the closest pair; the cutoff if there is none
  bool knows_stranger() const { return knows_stranger_; }    // an atom in the list has no row

  // Calls visit(i, j, r) for every pair of atoms.
  template <typename Visit> void for_each_pair(Visit &&visit) const
  {
    for (size_t k = 0; k < centre_.size(); ++k)
      for (int64_t e = first_[k]; e < first_[k + 1]; ++e) visit(centre_[k], neighbour_[e], &vector_[3 * e]);
  }

  // Calls visit(i, j, r, f) for every pair of atoms with f = dE/dr; a mirror image counts as -f of its original.
  template <typename Visit> void for_each(const double *edge_forces, Visit &&visit) const
  {
    for (size_t k = 0; k < centre_.size(); ++k)
      for (int64_t e = first_[k]; e < first_[k + 1]; ++e) visit(centre_[k], neighbour_[e], &vector_[3 * e], &edge_forces[3 * e]);
    for (size_t m = 0; m < mirrored_.size(); ++m) {
      const double *g = &edge_forces[3 * (count_ + m)];
      const double f[3] = {-g[0], -g[1], -g[2]};
      visit(mirrored_[m].centre, neighbour_[mirrored_[m].edge], &vector_[3 * mirrored_[m].edge], f);
    }
  }

  double bytes() const;

 private:
  struct Mirror {
    int64_t edge;
    int centre;
  };

  void reserve(int64_t pairs);
  void mirror(const Rows &rows);

  std::vector<int64_t> index_;     // (2, size), neighbours then centres; grown, never shrunk
  std::vector<double> vector_;     // (size, 3)
  std::vector<int> neighbour_;     // (count) j of each edge
  std::vector<int> centre_;        // i of each group of edges
  std::vector<int64_t> first_;     // the first edge of each group, and the end
  std::vector<Mirror> mirrored_;
  double shortest_ = 0;
  bool knows_stranger_ = false;
  int64_t count_ = 0;              // edges without mirror images
};

}    // namespace triforces

#endif
