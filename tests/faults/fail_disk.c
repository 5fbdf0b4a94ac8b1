/* LD_PRELOAD library: makes writes and syncs of the files below $FAIL_ROOT fail, or take long.
 *
 * $FAIL_SWITCH names a file of eight 32-bit integers that the test and this library share:
 *   0 errno of writes   2 calls that still succeed before   4 calls that failed   6 syncs so far
 *   1 errno of syncs    3 how many fail then                5 a sync takes so many microseconds longer
 * An errno of 0 fails nothing. A call that fails has done nothing to the file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE_ERRNO, SYNC_ERRNO, AFTER, TIMES, FAILED, SLOW_US, SYNCS, CELLS = 8 };
static _Atomic int *cells;
static char root[PATH_MAX];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *wanted = getenv("FAIL_ROOT"), *file = getenv("FAIL_SWITCH");
    if (!wanted || !file) return;
    snprintf(root, sizeof root, "%s/", wanted);
    int fd = open(file, O_RDWR | O_CLOEXEC);
    void *shared = mmap(NULL, CELLS * sizeof *cells, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared == MAP_FAILED) abort();
    cells = shared;
}

static int watched(int fd) {
    char link[64], path[PATH_MAX];
    if (!cells) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !strncmp(path, root, strlen(root));
}

/* Whether this call shall fail; sets errno. */
static int fails(int fd, int kind) {
    int error = cells ? cells[kind] : 0;
    if (!error || !watched(fd)) return 0;
    if (atomic_fetch_sub(&cells[AFTER], 1) > 0) return 0;
    if (atomic_fetch_sub(&cells[TIMES], 1) <= 0) return 0;
    atomic_fetch_add(&cells[FAILED], 1);
    errno = error;
    return 1;
}

static void sync_begins(int fd) {
    if (!watched(fd)) return;
    atomic_fetch_add(&cells[SYNCS], 1);
    if (cells[SLOW_US]) usleep(cells[SLOW_US]);
}

ssize_t write(int fd, const void *data, size_t size) {
    return fails(fd, WRITE_ERRNO) ? -1 : REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return fails(fd, WRITE_ERRNO) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return fails(fd, WRITE_ERRNO) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
int ftruncate(int fd, off_t size) { return fails(fd, WRITE_ERRNO) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails(fd, WRITE_ERRNO) ? -1 : REAL(ftruncate64)(fd, size); }
int fsync(int fd) {
    sync_begins(fd);
    return fails(fd, SYNC_ERRNO) ? -1 : REAL(fsync)(fd);
}
int fdatasync(int fd) {
    sync_begins(fd);
    return fails(fd, SYNC_ERRNO) ? -1 : REAL(fdatasync)(fd);
}
