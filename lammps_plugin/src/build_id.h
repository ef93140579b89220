#ifndef TRIFORCES_BUILD_ID_H
#define TRIFORCES_BUILD_ID_H

#include <string>

namespace triforces {

// The GNU build id of the liblammps in this process, in hexadecimal; empty when it has none.
std::string liblammps_build_id();

}    // namespace triforces

#endif
