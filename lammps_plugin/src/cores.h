#ifndef TRIFORCES_CORES_H
#define TRIFORCES_CORES_H

#include <mpi.h>

namespace triforces {

struct Share {
  int cores;    // this rank's fair share of those of its node, at least 1
  int rank;     // its number among the ranks of its node
  int ranks;    // how many they are
};

// Collective.
Share share_of_node(MPI_Comm world);

}    // namespace triforces

#endif
