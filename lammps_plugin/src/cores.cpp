#include "cores.h"

#include <algorithm>
#include <sched.h>

int triforces::ranks_on_node(MPI_Comm world)
{
  MPI_Comm node;
  int ranks = 1;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  return ranks;
}

int triforces::share_of_cores(MPI_Comm world)
{
  cpu_set_t mine, all;
  CPU_ZERO(&mine);
  sched_getaffinity(0, sizeof(mine), &mine);
  const long count = CPU_COUNT(&mine);
  long claims = 0;
  MPI_Comm node;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Allreduce(&mine, &all, sizeof(mine), MPI_BYTE, MPI_BOR, node);
  MPI_Allreduce(&count, &claims, 1, MPI_LONG, MPI_SUM, node);
  MPI_Comm_free(&node);
  // Ranks bound to cores of their own keep them; ranks that may all use the same cores divide them.
  return claims > 0 ? std::max(1L, CPU_COUNT(&all) * count / claims) : 1;
}
