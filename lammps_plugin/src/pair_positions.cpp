// PairTriforces' evaluation by positions: for models on a GPU, which make their own edges.
#include "pair_triforces.h"

#include "atom.h"

#include <cmath>

using namespace LAMMPS_NS;
using triforces::PairTriforces;

void PairTriforces::compute_positions(const double *x)
{
  if (rows_are_new_) skin_.copy(list);
  send(x);
  const bool overlapping = frame_.shortest < facts_.overlap;
  const double energy = add_rows();
  if (!overlapping && std::isfinite(energy)) return;
  // What is wrong with which atoms is found as it is where edges are made here.
  edges_.build(list, x, rows_, facts_.cutoff, false);
  if (overlapping) require_no_overlap();
  require_finite_rows();
  if (!std::isfinite(energy)) stop("the total energy is not finite");
}

// Elements and their counts may change without a new list (fix atom/swap); they go over when they have.
void PairTriforces::send(const double *x)
{
  frame_ = {};
  frame_.atoms = atom->nlocal + atom->nghost;
  frame_.rows = rows_.total();
  frame_.owned = rows_.owned;
  frame_.centres = static_cast<int64_t>(skin_.centre.size());
  frame_.pairs = static_cast<int64_t>(skin_.neighbour.size());
  frame_.positions = x;
  frame_.numbers = numbers_.data();
  frame_.counts = counts_.data();
  frame_.row = rows_.row.data();
  frame_.centre = skin_.centre.data();
  frame_.first = skin_.first.data();
  frame_.neighbour = skin_.neighbour.data();
  frame_.new_list = rows_are_new_;
  frame_.new_numbers = numbers_ != sent_numbers_ || counts_ != sent_counts_;
  frame_.atom_virials = vflag_atom != 0;
  sent_counts_.clear();    // in case this fails
  step_.moved = 0;
  thrown_ = nullptr;
  const int32_t status = bridge_->move(session_, &frame_);
  if (thrown_) std::rethrow_exception(thrown_);
  if (status != TF_OK) stop(bridge_->error);
  rows_are_new_ = false;
  sent_numbers_ = numbers_;
  sent_counts_ = counts_;
}

// Forces come summed over the ghosts that share a row; the atom that stands for it takes them all. Returns the energy, or
// something that is not finite as soon as one number is not.
double PairTriforces::add_rows()
{
  const double *const force = frame_.forces;
  double energy = 0.0, sum[3] = {};    // one for each component: additions to a single one would wait for each other
  for (int r = 0; r < rows_.owned; ++r) energy += frame_.energies[r];
  for (int r = 0; r < rows_.total(); ++r) {
    double *const f = atom->f[rows_.atom[r]];
    for (int d = 0; d < 3; ++d) {
      f[d] += energy_unit_ * force[3 * r + d];
      sum[d] += force[3 * r + d];
    }
  }
  if (eflag_global) eng_vdwl += energy_unit_ * energy;
  if (eflag_atom)
    for (int r = 0; r < rows_.owned; ++r) eatom[rows_.atom[r]] += energy_unit_ * frame_.energies[r];
  if (facts_.uncertainty) take_uncertainty(frame_.uncertainty);
  if (vflag_global)
    for (int k = 0; k < 6; ++k) virial[k] += energy_unit_ * frame_.virial[k];
  if (vflag_atom)
    for (int r = 0; r < rows_.total(); ++r)
      for (int k = 0; k < 6; ++k) vatom[rows_.atom[r]][k] += energy_unit_ * frame_.atom_virial[6 * r + k];
  const double forces = sum[0] + sum[1] + sum[2];
  return std::isfinite(forces) ? energy : forces;
}

void PairTriforces::require_finite_rows()
{
  for (int r = 0; r < rows_.owned; ++r)
    if (!std::isfinite(frame_.energies[r])) stop("the energy of " + location(rows_.atom[r]) + " is not finite");
  for (int r = 0; r < rows_.total(); ++r)
    if (!std::isfinite(frame_.forces[3 * r] + frame_.forces[3 * r + 1] + frame_.forces[3 * r + 2]))
      stop("the force on " + location(rows_.atom[r]) + " is not finite");
}
