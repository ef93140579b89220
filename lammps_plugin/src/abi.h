// The border between the pair style (C++) and bridge.py (ctypes): plain C, the same field by field on both sides.
//
// Every function returns one of these, never throws, and leaves one message in `error` when it fails.
#ifndef TRIFORCES_ABI_H
#define TRIFORCES_ABI_H

#include <stdint.h>

enum { TF_ABI = 2 };
enum { TF_OK = 0, TF_FAILED = 1, TF_BROKEN = 2 };    // broken: a defect, after which other ranks may wait for this one
enum { TF_TEXT = 16384, TF_ELEMENTS = 119 };

// What LAMMPS must know of a potential before it asks for neighbours.
typedef struct {
  double cutoff;             // Å
  double overlap;            // Å; atoms closer than this are a mistake
  int32_t bidirectional;     // ghosts need the mirrored edges too
  int32_t exchanges;         // calls of the exchange each way
  int32_t by_positions;      // the model is on a GPU: give it a tf_frame instead of a tf_step
  int32_t uncertainty;       // it tells how uncertain the energy of each atom is
} tf_facts;

// What Python checks and shows once at the start of a run.
typedef struct {
  const char *units;
  const double *mass;        // (types + 1), index 0 unused; zero where atoms carry their own
  const int32_t *numbers;    // (types + 1), atomic number of each type, 0 for NULL
  const int64_t *counts;     // (TF_ELEMENTS) atoms of the whole system
  double ghost_cutoff;       // Å
  int32_t types;
  int32_t newton;
  int32_t ranks;
  int32_t bonds_drop_pairs;  // special_bonds takes neighbours out of the list
  int32_t exclusions;        // neigh_modify exclude does
  int32_t loses_ghosts;      // comm_style tiled of a triclinic box on several ranks
  int32_t ghost_neighbours;  // `mliap unified FILE 1` was asked for
  int32_t node_ranks;        // ranks that share this rank's memory
  int64_t owned, rows, edges;             // the largest number that a rank has
  int64_t ghost_rows_min, ghost_rows_max; // rows of other ranks' atoms that a rank has
  int64_t ghosts_min, ghosts_max;         // ghosts that LAMMPS communicates, of which some share a row
} tf_run;

// One evaluation. Rows are owned atoms first, then ghosts of other ranks; edges are in rows.
typedef struct {
  int64_t rows, owned, edges;
  const int64_t *numbers;     // (rows)
  const int64_t *edge_index;  // (2, edges): neighbours, then centres
  const double *edge_vector;  // (edges, 3), Å
  const int64_t *counts;      // (TF_ELEMENTS) atoms of the whole system
  const double *energies;     // filled by Python: (rows), eV
  const double *edge_forces;  // filled by Python: (edges, 3), eV/Å
  const double *uncertainty;  // filled by Python: (rows), eV, where the potential tells it; all live until the next call
  int64_t moved;              // bytes that exchanges brought to (or took from) this rank's ghosts in this evaluation
} tf_step;

// One evaluation by positions. Rows are as in tf_step; pairs are those of LAMMPS' list, beyond the cutoff too.
typedef struct {
  int64_t atoms;              // owned and ghosts
  int64_t rows, owned, centres, pairs;
  const double *positions;    // (atoms, 3), Å
  const int64_t *numbers;     // (rows)
  const int64_t *counts;      // (TF_ELEMENTS) atoms of the whole system
  const int32_t *row;         // (atoms), -1 for those of types mapped to NULL
  const int32_t *centre;      // (centres) atoms
  const int64_t *first;       // (centres + 1) where each one's neighbours begin
  const int32_t *neighbour;   // (pairs) atoms
  int32_t new_list;           // rows and list are others than at the last call
  int32_t new_numbers;        // numbers or counts are
  int32_t atom_virials;       // wanted
  double shortest;            // filled by Python, like all below: Å between the closest pair, or more than the cutoff
  const double *energies;     // (rows), eV
  const double *forces;       // (rows, 3), eV/Å
  const double *virial;       // (6), eV: xx, yy, zz, xy, xz, yz
  const double *uncertainty;  // (rows), eV, where the potential tells it
  const double *atom_virial;  // (rows, 6) where wanted; all of them live until the next call
} tf_frame;

typedef struct {
  int32_t abi;
  char *error;  // (TF_TEXT)

  // C++ offers: move rows (n, width) between ranks, in place; every rank must call.
  int32_t (*exchange)(void *pair, int32_t adjoint, int32_t item_size, int64_t width, void *rows);
  // The same of numbers that are to be summed over all ranks.
  int32_t (*sum)(void *pair, int64_t count, double *values);

  // Python offers. `session` is a number that open() gives.
  int32_t (*open)(const char *file, void *pair, int32_t threads, int32_t local_rank, int64_t *session, tf_facts *facts);
  int32_t (*map)(int64_t session, const char *names, int32_t *numbers);
  int32_t (*start)(int64_t session, const tf_run *run, char *text);
  int32_t (*test)(int64_t session, const tf_step *step, const int64_t *ids);    // ids (rows) of the atoms, or null
  int32_t (*compute)(int64_t session, tf_step *step);
  int32_t (*move)(int64_t session, tf_frame *frame);
  void (*close)(int64_t session);
} tf_table;

#endif
