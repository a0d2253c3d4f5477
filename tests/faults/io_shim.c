/* Preloaded: one call that changes a file on one device fails. The file that IO_SHIM names is mapped: the device, how
   many calls are still to succeed, the error number, and how many calls there were (8 bytes each). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile struct { long long device, left, error, calls; } *page;

__attribute__((constructor)) static void map_page(void) {
    int file = open(getenv("IO_SHIM"), O_RDWR | O_CLOEXEC);
    void *mapped = mmap(0, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    page = mapped == MAP_FAILED ? 0 : mapped;
}

static int fails(int known, const struct stat *of) {
    if (known || !page || !page->device || (long long)of->st_dev != page->device) return 0;
    __sync_add_and_fetch(&page->calls, 1);
    if (__sync_fetch_and_sub(&page->left, 1) != 0) return 0;
    errno = (int)page->error;
    return 1;
}

static int fd_fails(int fd) {
    struct stat of;
    int before = errno;
    int known = fstat(fd, &of);
    errno = before;
    return fails(known, &of);
}

static int path_fails(const char *path) {
    char copy[PATH_MAX];
    struct stat of;
    int before = errno;
    strncpy(copy, path, sizeof copy - 1);
    copy[sizeof copy - 1] = 0;
    int known = stat(dirname(copy), &of);
    errno = before;
    return fails(known, &of);
}

#define WRAP(check, type, name, parameters, ...)                  \
    type name parameters {                                        \
        static type(*real) parameters;                            \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return check ? (type)-1 : real(__VA_ARGS__);              \
    }

WRAP(fd_fails(fd), ssize_t, write, (int fd, const void *data, size_t n), fd, data, n)
WRAP(fd_fails(fd), ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), fd, data, n, at)
WRAP(fd_fails(fd), ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), fd, data, n, at)
WRAP(fd_fails(fd), int, fsync, (int fd), fd)
WRAP(fd_fails(fd), int, ftruncate, (int fd, off_t n), fd, n)
WRAP(fd_fails(fd), int, ftruncate64, (int fd, off64_t n), fd, n)
WRAP(path_fails(to), int, rename, (const char *from, const char *to), from, to)
WRAP(path_fails(path), int, mkdir, (const char *path, mode_t mode), path, mode)

#define OPEN(name)                                                                                     \
    int name(const char *path, int flags, ...) {                                                       \
        static int (*real)(const char *, int, ...);                                                    \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                    \
        va_list more;                                                                                  \
        va_start(more, flags);                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                        \
        va_end(more);                                                                                  \
        return page && flags & O_CREAT && path_fails(path) ? -1 : real(path, flags, mode);             \
    }

OPEN(open)
OPEN(open64)
