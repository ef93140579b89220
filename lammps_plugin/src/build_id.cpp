#include "build_id.h"

#include <cstring>
#include <link.h>

namespace {

std::string hexadecimal(const unsigned char *bytes, size_t n)
{
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t k = 0; k < n; ++k) {
    text += digits[bytes[k] >> 4];
    text += digits[bytes[k] & 15];
  }
  return text;
}

// Walks the notes of one segment; each is a header, a name and a body, both padded to four bytes.
std::string build_id_in(const char *at, size_t size)
{
  const char *end = at + size;
  while (at + sizeof(ElfW(Nhdr)) <= end) {
    ElfW(Nhdr) note;
    memcpy(&note, at, sizeof(note));
    const char *name = at + sizeof(note);
    const char *body = name + ((note.n_namesz + 3u) & ~3u);
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(name, "GNU", 4) == 0)
      return hexadecimal(reinterpret_cast<const unsigned char *>(body), note.n_descsz);
    at = body + ((note.n_descsz + 3u) & ~3u);
  }
  return "";
}

int visit(dl_phdr_info *object, size_t, void *result)
{
  if (!object->dlpi_name || !strstr(object->dlpi_name, "liblammps")) return 0;
  for (int k = 0; k < object->dlpi_phnum; ++k) {
    const auto &segment = object->dlpi_phdr[k];
    if (segment.p_type != PT_NOTE) continue;
    const std::string id = build_id_in(reinterpret_cast<const char *>(object->dlpi_addr + segment.p_vaddr), segment.p_memsz);
    if (!id.empty()) {
      *static_cast<std::string *>(result) = id;
      return 1;
    }
  }
  return 0;
}

}    // namespace

std::string triforces::liblammps_build_id()
{
  std::string id;
  dl_iterate_phdr(visit, &id);
  return id;
}
