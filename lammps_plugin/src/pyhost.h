#ifndef TRIFORCES_PYHOST_H
#define TRIFORCES_PYHOST_H

#include "abi.h"

namespace triforces {

using Exchange = decltype(tf_table::exchange);
using Sum = decltype(tf_table::sum);

// The table of callbacks, filled in by bridge.py. Starts Python when the process has none yet.
// Throws std::runtime_error with one line when Python cannot be had.
tf_table &connect(Exchange exchange, Sum sum);

}    // namespace triforces

#endif
