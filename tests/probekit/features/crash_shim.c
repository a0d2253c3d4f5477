/* Preloaded into a process that extracts: kills it at, or fails, the k-th call that changes a file under a folder.
   Modes: 0 count only; 1 SIGKILL before the call; 2 SIGKILL after half of a write; 3 this and all later writes: ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long target = -1;
static int mode = 0;
static volatile long calls = 0;

void shim_arm(const char *under, long k, int how) {
    strncpy(folder, under, sizeof folder - 1);
    calls = 0, target = k, mode = how;
}

long shim_calls(void) { return calls; }

static int path_counts(const char *path) { return folder[0] && strncmp(path, folder, strlen(folder)) == 0; }

static int fd_counts(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return path_counts(path);
}

/* 0 go on, 1 fail with ENOSPC, 2 write half and die */
static int hit(int is_write) {
    long now = __sync_add_and_fetch(&calls, 1);
    if (mode == 3) return is_write && now >= target;
    if (now != target || mode == 0) return 0;
    if (mode == 2 && is_write) return 2;
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)

typedef ssize_t (*pwrite_t)(int, const void *, size_t, off64_t);
typedef ssize_t (*write_t)(int, const void *, size_t);
typedef int (*trunc_t)(int, off64_t);
typedef int (*sync_t)(int);
typedef int (*rename_t)(const char *, const char *);

static ssize_t do_pwrite(pwrite_t real, int fd, const void *data, size_t n, off64_t at) {
    int what = fd_counts(fd) ? hit(1) : 0;
    if (what == 1) { errno = ENOSPC; return -1; }
    if (what == 2) { real(fd, data, n / 2, at); die(); }
    return real(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL("pwrite64", pwrite_t);
    return do_pwrite(real, fd, data, n, at);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL("pwrite", pwrite_t);
    return do_pwrite(real, fd, data, n, at);
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL("write", write_t);
    int what = fd_counts(fd) ? hit(1) : 0;
    if (what == 1) { errno = ENOSPC; return -1; }
    if (what == 2) { real(fd, data, n / 2); die(); }
    return real(fd, data, n);
}

int ftruncate64(int fd, off64_t n) {
    REAL("ftruncate64", trunc_t);
    if (fd_counts(fd)) hit(0);
    return real(fd, n);
}

int ftruncate(int fd, off_t n) {
    REAL("ftruncate", trunc_t);
    if (fd_counts(fd)) hit(0);
    return real(fd, n);
}

int fsync(int fd) {
    REAL("fsync", sync_t);
    if (fd_counts(fd)) hit(0);
    return real(fd);
}

int rename(const char *from, const char *to) {
    REAL("rename", rename_t);
    if (path_counts(from)) hit(0);
    return real(from, to);
}
