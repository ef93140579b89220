#include "rows.h"

#include <cstdint>
#include <unordered_map>

void triforces::Rows::number_owned(int rank, int nlocal, int ntotal, const int *type, const int *mapped)
{
  row.assign(ntotal, -1);
  owner.assign(2 * static_cast<size_t>(ntotal), -1.0);
  atom.clear();
  for (int i = 0; i < nlocal; ++i) {
    if (mapped[type[i]] < 0) continue;
    row[i] = static_cast<int>(atom.size());
    atom.push_back(i);
    owner[2 * i] = rank;
    owner[2 * i + 1] = row[i];
  }
  owned = static_cast<int>(atom.size());
}

void triforces::Rows::number_ghosts(int rank, int nlocal)
{
  std::unordered_map<int64_t, int> foreign;
  for (int i = nlocal; i < static_cast<int>(row.size()); ++i) {
    const auto its_rank = static_cast<int64_t>(owner[2 * i]);
    const auto its_row = static_cast<int64_t>(owner[2 * i + 1]);
    if (its_row < 0) continue;
    if (its_rank == rank) {
      row[i] = static_cast<int>(its_row);
      continue;
    }
    const auto [found, is_new] = foreign.try_emplace((its_rank << 32) | its_row, total());
    row[i] = found->second;
    if (is_new) atom.push_back(i);
  }
}
