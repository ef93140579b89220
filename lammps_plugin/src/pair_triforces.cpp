#include "pair_triforces.h"

#include "cores.h"
#include "pyhost.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

using namespace LAMMPS_NS;
using triforces::PairMliapUnified;
using triforces::PairTriforces;

PairTriforces::PairTriforces(LAMMPS *lmp) : Pair(lmp), counts_(TF_ELEMENTS), own_counts_(TF_ELEMENTS)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
  // LAMMPS' shortcut sums x*fy alone, which is the shear stress only of models that are exactly equivariant.
  no_virial_fdotr_compute = 1;
  // LAMMPS sizes its buffers by these once; wider rows travel in several pieces.
  comm_forward = comm_reverse = 64;
}

PairTriforces::~PairTriforces()
{
  if (copymode) return;
  if (session_ >= 0) bridge_->close(session_);
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

// Set-up errors belong to all ranks: the lowest rank that failed says why, and every rank stops in the same call.
void PairTriforces::all_or_error(int32_t status)
{
  char *message = bridge_->error;
  int failing = status == TF_OK ? comm->nprocs : comm->me, first;
  MPI_Allreduce(&failing, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == comm->nprocs) return;
  MPI_Bcast(message, TF_TEXT, MPI_CHAR, first, world);
  error->all(FLERR, std::string(message));
}

// Ends all ranks because of what happened on this one; the others may be waiting for it.
void PairTriforces::stop(const std::string &message)
{
  try {
    error->one(FLERR, message);
  } catch (...) {
    // The end of the job would overtake the message on its way through mpirun.
    if (comm->nprocs > 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    throw;
  }
}

void PairTriforces::settings(int narg, char **arg)
{
  if (narg != 1) error->all(FLERR, "pair_style triforces takes one argument, the file that 'tfdeploy export' wrote");
  std::string reason;
  try {
    bridge_ = &connect(&exchange, &sum);
  } catch (std::runtime_error &failure) {
    reason = failure.what();
  }
  int without_python = !reason.empty(), any;
  MPI_Allreduce(&without_python, &any, 1, MPI_INT, MPI_MAX, world);
  if (any) error->all(FLERR, reason.empty() ? "another rank could not start Python" : reason);

  const Share share = share_of_node(world);
  node_ranks_ = share.ranks;
  if (session_ >= 0) bridge_->close(session_);
  session_ = -1;
  all_or_error(bridge_->open(arg[0], this, share.cores, share.rank, &session_, &facts_));
  started_ = false;
}

void PairMliapUnified::settings(int narg, char **arg)
{
  if (narg < 2 || narg > 3) error->all(FLERR, "expected: pair_style mliap unified FILE [0|1]");
  ghost_neighbours_ = narg == 3 ? utils::inumeric(FLERR, arg[2], false, lmp) : 0;
  if (ghost_neighbours_ != 0 && ghost_neighbours_ != 1) error->all(FLERR, "expected: pair_style mliap unified FILE [0|1]");
  PairTriforces::settings(1, arg + 1);
}

void PairTriforces::coeff(int narg, char **arg)
{
  const int types = atom->ntypes;
  if (narg - 2 != types)
    error->all(FLERR, "pair_coeff * * needs one element for each of the " + std::to_string(types) +
                   " atom types (NULL for types of another pair style), got " + std::to_string(narg - 2));
  if (!allocated) {
    memory->create(setflag, types + 1, types + 1, "pair:setflag");
    memory->create(cutsq, types + 1, types + 1, "pair:cutsq");
    map = new int[types + 1];
    allocated = 1;
  }
  map_element2type(narg - 2, arg + 2);
  std::string names;
  for (int k = 2; k < narg; ++k) names += std::string(k > 2 ? " " : "") + arg[k];
  numbers_of_type_.assign(types + 1, 0);
  all_or_error(bridge_->map(session_, names.c_str(), numbers_of_type_.data()));
}

void PairTriforces::init_style()
{
  neighbor->add_request(this, NeighConst::REQ_FULL);
  // Ours are metal's; what units there are otherwise, Python refuses.
  const bool real = strcmp(update->unit_style, "real") == 0;
  energy_unit_ = real ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1.0;
  rows_built_ = -1;
  sent_counts_.clear();
  started_ = false;
}

double PairTriforces::init_one(int, int)
{
  return facts_.cutoff;
}

void PairTriforces::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  take_atoms();
  const double *x = atom->nlocal + atom->nghost > 0 ? atom->x[0] : nullptr;
  const bool starting = !started_;
  // A model that is given positions makes its own edges; here they are counted once.
  if (starting || !facts_.by_positions)
    edges_.build(list, x, rows_, facts_.cutoff, facts_.bidirectional && rows_.any_ghosts());
  describe_step();
  if (starting) start();
  if (facts_.by_positions) {
    compute_positions(x);
    if (starting) show_exchanged();
    return;
  }
  if (edges_.knows_stranger())
    stop("an atom changed between a type of this pair style and NULL without a new neighbor list");
  if (edges_.shortest() < facts_.overlap) require_no_overlap();
  evaluate();
  if (starting) show_exchanged();
  tally();
}

// Rows follow the neighbour list: atoms change owner, order and ghosts only when it is rebuilt. Types may change without
// that (fix atom/swap), so they are looked at in every step; all ranks hear of the counts of all.
void PairTriforces::take_atoms()
{
  const int nlocal = atom->nlocal, nghost = atom->nghost, total = nlocal + nghost;
  const bool own_rows_new =
      neighbor->ago == 0 || rows_built_ != neighbor->lastcall || rows_atoms_ != nlocal || rows_ghosts_ != nghost;
  const bool same_types = !own_rows_new && std::equal(types_.begin(), types_.end(), atom->type);
  if (!same_types) {
    types_.assign(atom->type, atom->type + total);
    std::fill(own_counts_.begin(), own_counts_.end(), 0);
    for (int i = 0; i < nlocal; ++i) ++own_counts_[numbers_of_type_[types_[i]]];
  }
  counts_ = own_counts_;
  // No element has number 0, where NULL types were counted; its place tells all ranks that one of them needs new rows.
  counts_[0] = own_rows_new;
  MPI_Allreduce(MPI_IN_PLACE, counts_.data(), TF_ELEMENTS, MPI_INT64_T, MPI_SUM, world);
  const bool new_rows = counts_[0] != 0;
  if (new_rows) number_rows();
  counts_[0] = 0;
  if (same_types && !new_rows) return;
  numbers_.resize(rows_.total());
  for (int r = 0; r < rows_.total(); ++r) numbers_[r] = numbers_of_type_[atom->type[rows_.atom[r]]];
}

void PairTriforces::number_rows()
{
  rows_atoms_ = atom->nlocal;
  rows_ghosts_ = atom->nghost;
  rows_built_ = neighbor->lastcall;
  rows_are_new_ = true;
  rows_.number_owned(comm->me, atom->nlocal, atom->nlocal + atom->nghost, atom->type, map);
  sharing_owners_ = true;
  comm->forward_comm(this, 2);
  sharing_owners_ = false;
  rows_.number_ghosts(comm->me, atom->nlocal);
}

// Python checks the run as a whole and describes it; the block is shown once, and again only when it has changed.
void PairTriforces::start()
{
  std::vector<double> mass(atom->ntypes + 1, 0.0);
  if (!atom->rmass && atom->mass)
    for (int t = 1; t <= atom->ntypes; ++t) mass[t] = atom->mass[t];
  int dropped = 0;
  for (int k = 1; k <= 3; ++k) dropped |= atom->molecular != 0 && neighbor->special_flag[k] == 0;

  tf_run run = {};
  run.units = update->unit_style;
  run.mass = mass.data();
  run.numbers = numbers_of_type_.data();
  run.counts = counts_.data();
  run.ghost_cutoff = comm->mode == Comm::SINGLE ? comm->get_comm_cutoff() : neighbor->cutneighmax;
  run.types = atom->ntypes;
  run.newton = force->newton_pair;
  run.ranks = comm->nprocs;
  run.bonds_drop_pairs = dropped;
  run.exclusions = neighbor->exclude;
  run.loses_ghosts = comm->nprocs > 1 && comm->style == Comm::TILED && domain->triclinic;
  run.ghost_neighbours = ghost_neighbours_;
  run.node_ranks = node_ranks_;
  measure(run);

  std::vector<char> text(TF_TEXT, '\0');
  all_or_error(bridge_->start(session_, &run, text.data()));
  is_news_ = text[0] != '\0';
  MPI_Bcast(&is_news_, 1, MPI_C_BOOL, 0, world);    // ranks of another machine may find other figures new
  if (comm->me == 0 && is_news_) utils::logmesg(lmp, std::string(text.data()));
  if (comm->nprocs > 1 && facts_.exchanges > 0) test_exchange();
  started_ = true;
}

// How the system is divided, known to all ranks.
void PairTriforces::measure(tf_run &run)
{
  const bigint ghost_rows = rows_.total() - rows_.owned, ghosts = atom->nghost;
  bigint most[7] = {rows_.owned, rows_.total(), edges_.size(), ghost_rows, ghosts, -ghost_rows, -ghosts};
  MPI_Allreduce(MPI_IN_PLACE, most, 7, MPI_LMP_BIGINT, MPI_MAX, world);
  run.owned = most[0];
  run.rows = most[1];
  run.edges = most[2];
  run.ghost_rows_max = most[3];
  run.ghosts_max = most[4];
  run.ghost_rows_min = -most[5];
  run.ghosts_min = -most[6];
}

// Every rank finds out for itself whether its ghosts get what they should; ids are what LAMMPS itself knows of them.
void PairTriforces::test_exchange()
{
  std::vector<int64_t> ids;
  if (atom->tag_enable)
    for (const int i : rows_.atom) ids.push_back(atom->tag[i]);
  thrown_ = nullptr;
  const int32_t status = bridge_->test(session_, &step_, atom->tag_enable ? ids.data() : nullptr);
  if (thrown_) std::rethrow_exception(thrown_);
  if (status == TF_BROKEN) stop(bridge_->error);
  all_or_error(status);
}

// Beside what the start-up block has predicted.
void PairTriforces::show_exchanged()
{
  if (!is_news_ || comm->nprocs == 1 || facts_.exchanges == 0) return;
  bigint most[2] = {step_.moved, -step_.moved};
  MPI_Allreduce(MPI_IN_PLACE, most, 2, MPI_LMP_BIGINT, MPI_MAX, world);
  if (comm->me == 0)
    utils::logmesg(lmp, "  exchanged in the first evaluation: " + std::to_string(-most[1]) + " to " + std::to_string(most[0]) +
                            " bytes per rank\n");
}

void PairTriforces::describe_step()
{
  step_.rows = rows_.total();
  step_.owned = rows_.owned;
  step_.edges = edges_.size();
  step_.numbers = numbers_.data();
  step_.edge_index = edges_.index();
  step_.edge_vector = edges_.vector();
  step_.counts = counts_.data();
}

void PairTriforces::evaluate()
{
  step_.moved = 0;
  thrown_ = nullptr;
  const int32_t status = bridge_->compute(session_, &step_);
  if (thrown_) std::rethrow_exception(thrown_);
  if (status != TF_OK) stop(bridge_->error);
}

void PairTriforces::tally()
{
  const double unit = energy_unit_;
  double energy = 0.0;
  for (int r = 0; r < rows_.owned; ++r) energy += step_.energies[r];
  double *const f = atom->nlocal + atom->nghost > 0 ? atom->f[0] : nullptr;
  double sum = energy;    // not finite as soon as one term is not
  edges_.for_each(step_.edge_forces, [f, unit, &sum](int i, int j, const double *, const double *pair_force) {
    for (int d = 0; d < 3; ++d) {
      f[3 * i + d] += unit * pair_force[d];
      f[3 * j + d] -= unit * pair_force[d];
      sum += pair_force[d];
    }
  });
  if (!std::isfinite(sum)) require_finite(energy);
  if (eflag_global) eng_vdwl += unit * energy;
  if (eflag_atom)
    for (int r = 0; r < rows_.owned; ++r) eatom[rows_.atom[r]] += unit * step_.energies[r];
  if (facts_.uncertainty) take_uncertainty(step_.uncertainty);
  if (vflag_either) tally_virial();
}

// LAMMPS' virial is minus the strain derivative of the energy; each atom of a pair gets half.
void PairTriforces::tally_virial()
{
  edges_.for_each(step_.edge_forces, [this](int i, int j, const double *r, const double *pair_force) {
    const double f[3] = {energy_unit_ * pair_force[0], energy_unit_ * pair_force[1], energy_unit_ * pair_force[2]};
    const double v[6] = {-r[0] * f[0], -r[1] * f[1], -r[2] * f[2], -0.5 * (r[0] * f[1] + r[1] * f[0]),
                         -0.5 * (r[0] * f[2] + r[2] * f[0]), -0.5 * (r[1] * f[2] + r[2] * f[1])};
    for (int k = 0; k < 6; ++k) {
      if (vflag_global) virial[k] += v[k];
      if (!vflag_atom) continue;
      vatom[i][k] += 0.5 * v[k];
      vatom[j][k] += 0.5 * v[k];
    }
  });
}

// Stops at the first atom whose energy or pair force is not a number; returns only when merely their sum overflowed.
void PairTriforces::require_finite(double energy)
{
  for (int r = 0; r < rows_.owned; ++r)
    if (!std::isfinite(step_.energies[r])) stop("the energy of " + location(rows_.atom[r]) + " is not finite");
  edges_.for_each(step_.edge_forces, [this](int i, int, const double *, const double *f) {
    if (!std::isfinite(f[0] + f[1] + f[2])) stop("the force on " + location(i) + " is not finite");
  });
  if (!std::isfinite(energy)) stop("the total energy is not finite");
}

// Atoms so close are a mistake in the input, and no network was trained for them.
void PairTriforces::require_no_overlap()
{
  edges_.for_each_pair([this](int i, int j, const double *r) {
    const double distance = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
    if (distance < facts_.overlap)
      stop("atoms " + id(i) + " and " + id(j) + " are " +
                     std::to_string(distance) + " Angstrom apart; remove one of them, for example with delete_atoms overlap");
  });
}

std::string PairTriforces::id(int i) const
{
  return std::to_string(atom->tag_enable ? atom->tag[i] : i + 1);
}

std::string PairTriforces::location(int i) const
{
  double nearest = facts_.cutoff * facts_.cutoff;
  edges_.for_each_pair([i, &nearest](int centre, int, const double *r) {
    if (centre == i) nearest = std::fmin(nearest, r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
  });
  return "atom " + id(i) + " (type " + std::to_string(atom->type[i]) + ", nearest neighbour at " +
      std::to_string(std::sqrt(nearest)) + " Angstrom)";
}

// Of each row; zero for atoms of other pair styles.
void PairTriforces::take_uncertainty(const double *of_rows)
{
  uncertainty_.assign(atom->nlocal + 1, 0.0);    // never empty: its address is what `fix pair` is given
  for (int r = 0; r < rows_.owned; ++r) uncertainty_[rows_.atom[r]] = energy_unit_ * of_rows[r];
}

void *PairTriforces::extract_peratom(const char *name, int &columns)
{
  columns = 0;
  if (strcmp(name, "uncertainty") != 0) return nullptr;
  if (session_ >= 0 && !facts_.uncertainty)
    error->all(FLERR, "this potential does not tell its uncertainty; "
                      "run 'tfdeploy uncertainty' on its checkpoint and export it again");
  return uncertainty_.empty() ? nullptr : uncertainty_.data();
}

double PairTriforces::memory_usage()
{
  return Pair::memory_usage() + rows_.bytes() + edges_.bytes() + skin_.bytes() +
      8.0 * (numbers_.capacity() + uncertainty_.capacity());
}
