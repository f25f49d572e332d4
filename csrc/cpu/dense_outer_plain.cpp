#include "cpu/dense_outer.h"
#include "cpu/dense_outer_tiles.h"

namespace ddn::cpu {

void dense_outer_plain(const DenseOuterParams& p, int64_t begin, int64_t end) {
  run_dense_outer(p, begin, end);
}

}  // namespace ddn::cpu
