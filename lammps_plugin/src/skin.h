#ifndef TRIFORCES_SKIN_H
#define TRIFORCES_SKIN_H

#include <cstdint>
#include <vector>

namespace LAMMPS_NS {
class NeighList;
}

namespace triforces {

// LAMMPS' neighbour list in one piece, as a model on a GPU gets it when it is new.
struct Skin {
  std::vector<int32_t> centre;       // atoms that have a list
  std::vector<int64_t> first;        // where the neighbours of each begin, and the end
  std::vector<int32_t> neighbour;    // atoms and ghosts

  void copy(const LAMMPS_NS::NeighList *list);

  double bytes() const { return 4.0 * (centre.capacity() + neighbour.capacity()) + 8.0 * first.capacity(); }
};

}    // namespace triforces

#endif
