#ifndef TRIFORCES_ROWS_H
#define TRIFORCES_ROWS_H

#include <cstddef>
#include <vector>

namespace triforces {

// Which row of the model's tensors each atom of this rank stands in.
//
// Owned atoms come first. A ghost of an owned atom shares its owner's row ("folded"), so that a single rank has no ghost
// rows and nothing to communicate; all ghosts of one atom of another rank share one row behind the owned ones.
struct Rows {
  std::vector<int> row;           // (atoms and ghosts); -1 for atoms of a type that is mapped to NULL
  std::vector<int> atom;          // (rows) the atom that stands for a row: the owned one, or the first of its ghosts
  int owned = 0;

  // Owner of each atom and ghost as (rank, row there), in doubles because that is what LAMMPS communicates.
  std::vector<double> owner;

  int total() const { return static_cast<int>(atom.size()); }
  bool any_ghosts() const { return total() > owned; }

  // An atom of another rank. Several ghosts may stand for one such atom and share its row.
  bool is_foreign(int i) const { return row[i] >= owned; }

  void number_owned(int rank, int nlocal, int ntotal, const int *type, const int *mapped);
  void number_ghosts(int rank, int nlocal);

  double bytes() const { return sizeof(int) * (row.capacity() + atom.capacity()) + sizeof(double) * owner.capacity(); }
};

}    // namespace triforces

#endif
