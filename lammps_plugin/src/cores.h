#ifndef TRIFORCES_CORES_H
#define TRIFORCES_CORES_H

#include <mpi.h>

namespace triforces {

// This rank's fair share of the cores of its node, at least 1. Collective.
int share_of_cores(MPI_Comm world);

// Ranks that share this one's memory. Collective.
int ranks_on_node(MPI_Comm world);

}    // namespace triforces

#endif
