// Energy, forces and stress of a structure in plain C++: an AOTInductor package, libtorch and vesin, no Python.
//
//     triforces MODEL.pt2 STRUCTURE.extxyz CUTOFF ELEMENT[:COUNT]...
//
// Cutoff in Å and elements are those of `tfdeploy info`; counts stand where the composition was frozen at export. Prints
// JSON: eV, eV/Å, and the stress where the cell has a volume, eV/Å³, ASE's sign. A package is code: run only what you trust.

#include <ATen/TensorOperators.h> // header by header: torch/torch.h takes several times as long to compile
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>
#include <vesin.h>

#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <map>

using at::Tensor;
using std::string;

// One process owns every atom, so the exchange of features between ranks, which the graph calls by name, only copies.
Tensor copy(const Tensor &h) { return h.clone(at::MemoryFormat::Contiguous); }
TORCH_LIBRARY(triforces, library) {
  library.def("exchange(Tensor h) -> Tensor", copy);
  library.def("exchange_adjoint(Tensor g) -> Tensor", copy);
}

[[noreturn]] void fail(const string &line) { throw std::invalid_argument(line); }

int64_t atomic_number(const string &symbol) {
  std::istringstream table(
      "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo "
      "Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl "
      "Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og");
  int64_t z = 1;
  for (string known; table >> known; ++z)
    if (known == symbol) return z;
  fail("'" + symbol + "' is no chemical symbol");
}

struct Structure {
  std::vector<string> symbols;
  Tensor positions, cell = at::zeros({3, 3}, at::kDouble); // (N, 3) Å; rows are lattice vectors, zero where there is none
  bool periodic[3]{};
};

string value_of(const string &comment, const string &key) { // of key=value or key="several values"
  const size_t at = (" " + comment).find(" " + key + "="), from = at + key.size() + 1;
  if (at == string::npos) return "";
  if (comment[from] != '"') return comment.substr(from, comment.find(' ', from) - from);
  return comment.substr(from + 1, comment.find('"', from + 1) - from - 1);
}

Structure read(const string &path) {
  std::ifstream file(path);
  string line, word;
  int64_t n = 0;
  if (!file || !(file >> n) || n < 1 || n > 100'000'000 || !std::getline(file, line) || !std::getline(file, line))
    fail("cannot read " + path + "; expected extended xyz: a number of atoms, a comment, then the atoms");
  const string columns = value_of(line, "Properties"), lattice = value_of(line, "Lattice");
  if (!columns.empty() && columns.rfind("species:S:1:pos:R:3", 0) != 0)
    fail(path + ": expected the columns species:S:1:pos:R:3 first, got " + columns);
  Structure s{.positions = at::zeros({n, 3}, at::kDouble)};
  std::istringstream vectors(lattice), periodic(value_of(line, "pbc"));
  for (int k = 0; k < 9 && !lattice.empty(); ++k)
    if (!(vectors >> s.cell.data_ptr<double>()[k])) fail(path + ": Lattice must be nine finite numbers in Å");
  for (int k = 0; k < 3; ++k) {
    s.periodic[k] = periodic.str().empty() ? !lattice.empty() : periodic >> word && word == "T";
    if (s.periodic[k] && !s.cell[k].any().item<bool>())
      fail(path + ": periodic along axis " + std::to_string(k) + " but that cell vector is zero; give a Lattice");
  }
  for (double *x = s.positions.data_ptr<double>(); n > 0; --n, x += 3) {
    std::istringstream row(std::getline(file, line) ? line : "");
    if (!(row >> word >> x[0] >> x[1] >> x[2])) fail(path + ": " + std::to_string(n) + " atoms are missing or unreadable");
    s.symbols.push_back(word);
  }
  return s;
}

Tensor complete(const Tensor &cell) { // vesin wants a box with a volume; what is not periodic may have any length
  const Tensor whole = cell.clone(), directions = std::get<2>(cell.svd()).t();
  for (int k = 2, unused = 2; k >= 0; --k)
    if (!cell[k].any().item<bool>()) whole[k].copy_(directions[unused--]);
  if (whole.det().abs().item<double>() < 1e-6) fail("the cell vectors are linearly dependent; expected a cell with a volume");
  return whole;
}

std::pair<Tensor, Tensor> edges_of(const Structure &s, double cutoff) { // (2, E) neighbour and centre; (E, 3) x_j − x_i
  VesinOptions options{};
  options.cutoff = cutoff, options.full = options.sorted = options.return_shifts = true; // sorted: by centre
  VesinNeighborList list;
  const char *message = nullptr;
  const Tensor cell = complete(s.cell);
  const auto rows = [](const Tensor &x) { return reinterpret_cast<const double(*)[3]>(x.data_ptr<double>()); };
  if (vesin_neighbors(rows(s.positions), s.symbols.size(), rows(cell), s.periodic, {VesinCPU, 0}, options, &list, &message))
    fail(string("no neighbour list: ") + message);
  const int64_t n = list.length;
  const Tensor pairs = at::from_blob(list.pairs, {n, 2}, at::kLong).flip(1).t().contiguous();
  const Tensor vectors = s.positions.index_select(0, pairs[0]) - s.positions.index_select(0, pairs[1]) +
                         at::from_blob(list.shifts, {n, 3}, at::kInt).to(at::kDouble).mm(cell);
  vesin_free(&list);
  if (n > 0 && vectors.norm(2, 1).min().item<double>() < 0.1) fail("two atoms are less than 0.1 Å apart; remove one of them");
  return {pairs, vectors};
}

void print(const string &name, const Tensor &rows) {
  const double *x = rows.data_ptr<double>();
  for (int64_t k = 0; k < rows.size(0); ++k, x += 3)
    std::cout << (k ? ", " : ", \"" + name + "\": [") << "[" << x[0] << ", " << x[1] << ", " << x[2] << "]";
  std::cout << "]";
}

int main(int argc, char **argv) try {
  const double cutoff = argc < 5 ? 0 : std::atof(argv[3]);
  if (!(cutoff > 0 && cutoff < 100)) fail("usage: triforces MODEL.pt2 STRUCTURE.extxyz CUTOFF ELEMENT[:COUNT]..., cutoff in Å");
  const Structure s = read(argv[2]);
  const int64_t n = s.symbols.size();
  const Tensor numbers = at::zeros(n, at::kLong), counts = at::zeros({1, 119}, at::kDouble), frozen = counts.clone();
  std::map<string, int64_t> known;
  for (int k = 4; k < argc; ++k) {
    const string word = argv[k], symbol = word.substr(0, word.find(':'));
    known[symbol] = atomic_number(symbol);
    if (symbol != word) frozen[0][known[symbol]] = std::atof(&word[symbol.size() + 1]);
  }
  for (int64_t i = 0; i < n; ++i) {
    if (!known.count(s.symbols[i])) fail("element " + s.symbols[i] + " is not among those that the command names");
    counts.data_ptr<double>()[numbers.data_ptr<int64_t>()[i] = known[s.symbols[i]]] += 1;
  }
  const auto [edge_index, edge_vector] = edges_of(s, cutoff);
  torch::inductor::AOTIModelPackageLoader model(argv[1], "model", true);
  const auto output = model.run({numbers, edge_index, edge_vector, numbers.new_zeros(n), numbers.new_ones(n, at::kBool),
                                 frozen.any().item<bool>() ? frozen : counts});
  const Tensor energy = output.at(0).sum(), f = output.at(1); // f = ∂E/∂r, on the centre; its opposite on the neighbour
  if (!energy.isfinite().item<bool>()) fail("the model returned NaN or infinity; look for lost atoms in the structure");
  std::cout << std::setprecision(17) << "{\"energy\": " << energy.item<double>();
  print("forces", f.new_zeros({n, 3}).index_add(0, edge_index[1], f).index_add(0, edge_index[0], -f));
  const Tensor volume = s.cell.det().abs(), virial = edge_vector.t().mm(f);
  if (volume.item<double>() > 0) print("stress", (virial + virial.t()) / (2 * volume));
  std::cout << "}" << std::endl;
} catch (const std::invalid_argument &error) { // ours
  std::cerr << "triforces: " << error.what() << std::endl;
  return 2;
} catch (const std::exception &error) { // libtorch's, with a stack trace below its first line
  std::cerr << "triforces: cannot run " << argv[1] << ": " << string(error.what(), strcspn(error.what(), "\n")) << std::endl;
  return 2;
}
