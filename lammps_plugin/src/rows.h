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

  // A reverse communication sends a ghost row once: by its first ghost, which LAMMPS received earliest and sends back
  // last, when everything that later swaps add to the row has arrived.
  bool speaks_for_row(int ghost) const { return row[ghost] >= owned && atom[row[ghost]] == ghost; }

  void number_owned(int rank, int nlocal, int ntotal, const int *type, const int *mapped);
  void number_ghosts(int rank, int nlocal);

  double bytes() const { return sizeof(int) * (row.capacity() + atom.capacity()) + sizeof(double) * owner.capacity(); }
};

}    // namespace triforces

#endif
