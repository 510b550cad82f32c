/* Preloaded (LD_PRELOAD), lets calls of one operation fail on files under a folder, as a disk or file server would.

   FAIL_UNDER      the folder; without it nothing is touched
   FAIL_LOG        file that gets a line "operation<TAB>path" for every call
   FAIL_OPERATION  open, stat, list, read, map, write, fsync, rename or link
   FAIL_PATH       pattern of fnmatch() for the path; of a rename or link the new one
   FAIL_AT         number of the first call to fail, from 1
   FAIL_TIMES      how many fail
   FAIL_ERRNO      with what */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int calls;

static int fails(const char *operation, const char *path) {
    const char *under = getenv("FAIL_UNDER"), *log = getenv("FAIL_LOG"), *chosen = getenv("FAIL_OPERATION");
    if (!under || !path || strncmp(path, under, strlen(under)))
        return 0;
    if (log) {
        char line[5000];
        int length = snprintf(line, sizeof line, "%s\t%s\n", operation, path);
        int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
        syscall(SYS_write, file, line, length);
        syscall(SYS_close, file);
    }
    if (!chosen || strcmp(chosen, operation) || fnmatch(getenv("FAIL_PATH"), path, 0))
        return 0;
    int call = __sync_add_and_fetch(&calls, 1), first = atoi(getenv("FAIL_AT"));
    if (call < first || call >= first + atoi(getenv("FAIL_TIMES")))
        return 0;
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}

static int fails_open_file(const char *operation, int file) {
    char link[40], path[4096];
    if (file < 0 || !getenv("FAIL_UNDER"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    int length = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return fails(operation, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                      \
        va_list more;                                                                                                 \
        va_start(more, flags);                                                                                        \
        mode_t mode = va_arg(more, mode_t);                                                                           \
        va_end(more);                                                                                                 \
        return fails("open", path) ? -1 : REAL(name)(path, flags, mode);                                              \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                          \
        va_list more;                                                                                                 \
        va_start(more, flags);                                                                                        \
        mode_t mode = va_arg(more, mode_t);                                                                           \
        va_end(more);                                                                                                 \
        return fails("open", path) ? -1 : REAL(name)(folder, path, flags, mode);                                      \
    }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name)                                                                                                    \
    FILE *name(const char *path, const char *mode) { return fails("open", path) ? NULL : REAL(name)(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)

#define STAT(name, kind)                                                                                               \
    int name(const char *path, struct kind *found) { return fails("stat", path) ? -1 : REAL(name)(path, found); }
STAT(stat, stat)
STAT(stat64, stat64)
#define STATAT(name, kind)                                                                                             \
    int name(int folder, const char *path, struct kind *found, int flags) {                                           \
        return fails("stat", path) ? -1 : REAL(name)(folder, path, found, flags);                                     \
    }
STATAT(fstatat, stat)
STATAT(fstatat64, stat64)

DIR *opendir(const char *path) { return fails("list", path) ? NULL : REAL(opendir)(path); }

ssize_t read(int file, void *to, size_t size) {
    return fails_open_file("read", file) ? -1 : REAL(read)(file, to, size);
}
ssize_t __read_chk(int file, void *to, size_t size, size_t room) {
    return size > room ? -1 : read(file, to, size);
}
#define PREAD(name)                                                                                                    \
    ssize_t name(int file, void *to, size_t size, off_t place) {                                                      \
        return fails_open_file("read", file) ? -1 : REAL(name)(file, to, size, place);                                \
    }
PREAD(pread)
PREAD(pread64)
size_t fread(void *to, size_t size, size_t count, FILE *stream) {
    return fails_open_file("read", fileno(stream)) ? 0 : REAL(fread)(to, size, count, stream);
}

ssize_t write(int file, const void *from, size_t size) {
    return fails_open_file("write", file) ? -1 : REAL(write)(file, from, size);
}
#define MMAP(name)                                                                                                     \
    void *name(void *place, size_t size, int access, int flags, int file, off_t first) {                              \
        return fails_open_file("map", file) ? MAP_FAILED : REAL(name)(place, size, access, flags, file, first);       \
    }
MMAP(mmap)
MMAP(mmap64)

int fsync(int file) { return fails_open_file("fsync", file) ? -1 : REAL(fsync)(file); }
int rename(const char *old, const char *new) { return fails("rename", new) ? -1 : REAL(rename)(old, new); }
int link(const char *old, const char *new) { return fails("link", new) ? -1 : REAL(link)(old, new); }
int linkat(int old_folder, const char *old, int folder, const char *new, int flags) {
    return fails("link", new) ? -1 : REAL(linkat)(old_folder, old, folder, new, flags);
}
