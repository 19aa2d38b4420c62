/* Make the system's calls on some files fail, in front of the C library (LD_PRELOAD).
 *
 * FAULT_CALL: open, list, read or write; FAULT_PATH: a part of the file's path; FAULT_ERRNO: the number. Looked at in each
 * call, so that a process may set them when it is ready.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int named(const char *path) {
    const char *part = getenv("FAULT_PATH");
    return part && path && strstr(path, part) != NULL;
}

static int wanted(const char *call) {
    const char *asked = getenv("FAULT_CALL");
    return asked && strcmp(asked, call) == 0;
}

static int is_open(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return named(path);
}

static int fails(void) {
    errno = atoi(getenv("FAULT_ERRNO"));
    return -1;
}

#define MODE(flags)                                                   \
    int mode = 0;                                                     \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                          \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode = va_arg(rest, int);                                     \
        va_end(rest);                                                 \
    }

#define OPEN(name)                                                    \
    int name(const char *path, int flags, ...) {                      \
        MODE(flags)                                                   \
        return wanted("open") && named(path) ? fails() : NEXT(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                  \
    int name(int folder, const char *path, int flags, ...) {          \
        MODE(flags)                                                   \
        return wanted("open") && named(path) ? fails() : NEXT(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                   \
    FILE *name(const char *path, const char *mode) {                  \
        if (wanted("open") && named(path)) {                          \
            fails();                                                  \
            return NULL;                                              \
        }                                                             \
        return NEXT(name)(path, mode);                                \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path) {
    if (wanted("list") && named(path)) {
        fails();
        return NULL;
    }
    return NEXT(opendir)(path);
}

#define MOVES(name, call, type)                                            \
    ssize_t name(int fd, type buffer, size_t size)                    \
    { return wanted(call) && is_open(fd) ? fails() : NEXT(name)(fd, buffer, size); }
MOVES(read, "read", void *)
MOVES(write, "write", const void *)

#define MOVES_AT(name, call, type, place)                             \
    ssize_t name(int fd, type buffer, size_t size, place offset)      \
    { return wanted(call) && is_open(fd) ? fails() : NEXT(name)(fd, buffer, size, offset); }
MOVES_AT(pread, "read", void *, off_t)
MOVES_AT(pread64, "read", void *, off64_t)
MOVES_AT(pwrite, "write", const void *, off_t)
MOVES_AT(pwrite64, "write", const void *, off64_t)
