// What LAMMPS calls when it loads this library: registers the styles, nothing else.
#include "build_id.h"
#include "pair_triforces.h"

#include "error.h"
#include "force.h"
#include "input.h"
#include "lammps.h"

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>

using namespace LAMMPS_NS;

namespace {

// LAMMPS' own header for this record is not among the installed ones.
struct Registration {
  const char *version, *style, *name, *info, *author;
  void *(*create)(void *);
  void *handle;
};
using Register = void (*)(Registration *, void *);

Force::PairCreator builtin_mliap = nullptr;

Pair *create_triforces(LAMMPS *lmp)
{
  return new triforces::PairTriforces(lmp);
}

// `mliap unified` is ours, every other use of `mliap` is LAMMPS' own; the command that asks for it tells which.
Pair *create_mliap(LAMMPS *lmp)
{
  int uses = 0, unified = 0;
  for (int k = 0; k < lmp->input->narg; ++k) {
    if (strcmp(lmp->input->arg[k], "mliap") != 0) continue;
    ++uses;
    if (k + 1 < lmp->input->narg && strcmp(lmp->input->arg[k + 1], "unified") == 0) ++unified;
  }
  if (unified == 0 && builtin_mliap) return builtin_mliap(lmp);
  if (unified < uses)
    lmp->error->all(FLERR, "this pair_style names mliap with and without 'unified'; "
                           "write 'triforces FILE' in place of 'mliap unified FILE'");
  return new triforces::PairMliapUnified(lmp);
}

// LAMMPS makes its maps of styles anew for `clear`, and then calls this library again only if it finds it on its path.
void stay_on_the_path()
{
  Dl_info here;
  char file[PATH_MAX];
  if (!dladdr(reinterpret_cast<void *>(&create_mliap), &here) || !realpath(here.dli_fname, file)) return;
  const std::string folder = std::string(file).substr(0, std::string(file).find_last_of('/'));
  const char *before = getenv("LAMMPS_PLUGIN_PATH");
  const std::string path = before ? before : "";
  if (path.find(folder) == std::string::npos)
    setenv("LAMMPS_PLUGIN_PATH", (path.empty() ? folder : path + ":" + folder).c_str(), 1);
}

}    // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lammps, void *handle, void *registrar)
{
  // Releases with the same date differ in the layout of their classes, so no object is touched before this.
  const std::string running = triforces::liblammps_build_id();
  if (running != TRIFORCES_BUILD_ID) {
    fprintf(stderr, "triforces plugin not loaded: it was built for LAMMPS build %s but this is build %s; "
                    "run 'python -m triforces_deploy.lammps_plugin build' in this environment\n",
            TRIFORCES_BUILD_ID, running.empty() ? "unknown" : running.c_str());
    return;
  }
  auto *lmp = static_cast<LAMMPS *>(lammps);
  Registration record = {lmp->version, "pair", "triforces", "TriForces potentials", "the triforces-deploy developers",
                         reinterpret_cast<void *(*)(void *)>(&create_triforces), handle};
  reinterpret_cast<Register>(registrar)(&record, lammps);

  // The register is one per process and refuses a second instance of LAMMPS; the map of styles is one per instance.
  auto &styles = *lmp->force->pair_map;
  styles["triforces"] = &create_triforces;
  const auto mliap = styles.find("mliap");
  if (mliap != styles.end() && mliap->second != &create_mliap) builtin_mliap = mliap->second;
  styles["mliap"] = &create_mliap;
  stay_on_the_path();
}
