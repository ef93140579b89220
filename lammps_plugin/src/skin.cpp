#include "skin.h"

#include "neigh_list.h"

using namespace LAMMPS_NS;

void triforces::Skin::copy(const NeighList *list)
{
  centre.assign(list->ilist, list->ilist + list->inum);
  first.resize(list->inum + 1);
  int64_t pairs = 0;
  for (int k = 0; k < list->inum; ++k) {
    first[k] = pairs;
    pairs += list->numneigh[centre[k]];
  }
  first[list->inum] = pairs;
  neighbour.resize(pairs);
  for (int k = 0; k < list->inum; ++k) {
    const int i = centre[k];
    const int *theirs = list->firstneigh[i];
    int32_t *ours = neighbour.data() + first[k];
    for (int n = 0; n < list->numneigh[i]; ++n) ours[n] = theirs[n] & NEIGHMASK;
  }
}
