#ifndef TRIFORCES_PAIR_H
#define TRIFORCES_PAIR_H

#include "abi.h"
#include "edges.h"
#include "rows.h"

#include "pair.h"

#include <exception>
#include <string>
#include <vector>

namespace triforces {

// pair_style triforces FILE
// pair_coeff * * ELEMENT ...
//
// LAMMPS' neighbours go to Python as edge vectors, per-atom energies and pair forces come back. In between, Python may
// ask for rows of ghost atoms to be filled in from (or added to) the ranks that own them.
class PairTriforces : public LAMMPS_NS::Pair {
 public:
  explicit PairTriforces(LAMMPS_NS::LAMMPS *);
  ~PairTriforces() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  double memory_usage() override;

  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

  static int32_t exchange(void *pair, int32_t adjoint, int32_t item_size, int64_t width, void *rows);
  static int32_t sum(void *pair, int64_t count, double *values);

 protected:
  int ghost_neighbours_ = 0;

 private:
  // The columns that one communication moves: `bytes` bytes from `data` on in each row, the rows `stride` bytes apart.
  struct Columns {
    char *data = nullptr;
    size_t stride = 0, bytes = 0;
    int item_size = 8;
    int doubles() const { return static_cast<int>((bytes + 7) / 8); }
    char *of(int row) const { return data + row * stride; }
  };

  void swap_rows(bool adjoint, int item_size, int64_t width, char *rows);
  void take_atoms();
  void number_rows();
  void start();
  void measure(tf_run &run);
  void test_exchange();
  void show_exchanged();
  void describe_step();
  void evaluate();
  void tally();
  void tally_virial();
  void require_no_overlap();
  void require_finite(double energy);
  void all_or_error(int32_t status);
  [[noreturn]] void stop(const std::string &message);
  std::string id(int i) const;
  std::string location(int i) const;

  tf_table *bridge_ = nullptr;
  int64_t session_ = -1;
  tf_facts facts_ = {};
  tf_step step_ = {};
  std::vector<int32_t> numbers_of_type_;
  std::vector<int64_t> numbers_, counts_;
  Rows rows_;
  Edges edges_;
  Columns columns_;
  std::exception_ptr thrown_;    // an error of LAMMPS that happened below Python, to be thrown again above it
  double energy_unit_ = 1.0;     // 1 eV in energies of this run
  int node_ranks_ = 1;
  bool started_ = false;
  bool is_news_ = false;         // the start-up block has changed
  bool sharing_owners_ = false;
  int rows_atoms_ = -1, rows_ghosts_ = -1;
  LAMMPS_NS::bigint rows_built_ = -1;
};

// pair_style mliap unified FILE [0|1]
class PairMliapUnified : public PairTriforces {
 public:
  using PairTriforces::PairTriforces;
  void settings(int, char **) override;
};

}    // namespace triforces

#endif
