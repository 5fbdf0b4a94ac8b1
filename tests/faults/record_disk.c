/* LD_PRELOAD library: writes down, in order, everything this process does to the files below
 * $RECORD_ROOT, as entries appended to $RECORD_LOG. With $RECORD_KILL_AT=n the process dies
 * of SIGKILL the moment entry n is written, so that what is on disk is what is written down.
 *
 * An entry is: kind (1 byte), inode (8), number (8), length (4), payload; little-endian, packed.
 *   c create   inode            name          w write     inode  offset  bytes
 *   u unlink                    name          t truncate  inode  size
 *   r rename                    old \0 new    a allocate  inode  size at least
 *   m mkdir                     name          s sync      inode
 *                                             d sync of a folder         name
 * Names are relative to the root. One lock around each call and its entry keeps them in order.
 * Tests append entries of their own (k) to the same file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 4096
enum { NONE, PLAIN, FOLDER };
static struct { int what; uint64_t inode; char name[256]; } fds[FDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static long entries, kill_at = -1;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *wanted = getenv("RECORD_ROOT"), *log = getenv("RECORD_LOG"), *last = getenv("RECORD_KILL_AT");
    if (!wanted || !log) return;
    snprintf(root, sizeof root, "%s", wanted);
    root_length = strlen(root);
    if (last) kill_at = atol(last);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 900); /* out of the way of closefrom-like habits */
    syscall(SYS_close, fd);
}

static void note(char kind, uint64_t inode, int64_t number, const void *payload, uint32_t length) {
    struct { char kind; uint64_t inode; int64_t number; uint32_t length; } __attribute__((packed))
        head = {kind, inode, number, length};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)payload, length}};
    if (syscall(SYS_writev, log_fd, parts, 2) != (long)(sizeof head + length)) abort();
    if (++entries == kill_at) kill(getpid(), SIGKILL);
}

static void note_name(char kind, uint64_t inode, const char *name) { note(kind, inode, 0, name, strlen(name)); }

/* The name below the root; NULL for every other path. */
static const char *watched(const char *path) {
    if (log_fd < 0 || !path || strncmp(path, root, root_length)) return NULL;
    if (!path[root_length]) return "";
    return path[root_length] == '/' ? path + root_length + 1 : NULL;
}

static int seen(int fd, int what) { return fd >= 0 && fd < FDS && fds[fd].what == what; }

static int opened(int fd, const char *path, int existed, int flags) {
    if (fd < 0 || fd >= FDS) return fd;
    fds[fd].what = NONE;
    const char *name = watched(path);
    struct stat found;
    if (!name || fstat(fd, &found)) return fd;
    fds[fd].what = S_ISDIR(found.st_mode) ? FOLDER : S_ISREG(found.st_mode) ? PLAIN : NONE;
    fds[fd].inode = found.st_ino;
    snprintf(fds[fd].name, sizeof fds[fd].name, "%s", name);
    if (fds[fd].what == PLAIN && !existed) note_name('c', found.st_ino, name);
    if (fds[fd].what == PLAIN && existed && (flags & O_TRUNC)) note('t', found.st_ino, 0, NULL, 0);
    return fd;
}

#define OPEN(function)                                              \
    int function(const char *path, int flags, ...) {                \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = va_arg(more, mode_t);                         \
        va_end(more);                                               \
        pthread_mutex_lock(&lock);                                  \
        struct stat before;                                         \
        int existed = !watched(path) || !stat(path, &before);       \
        int fd = REAL(function)(path, flags, mode), error = errno;  \
        opened(fd, path, existed, flags);                           \
        pthread_mutex_unlock(&lock);                                \
        errno = error;                                              \
        return fd;                                                  \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                             \
    int function(int folder, const char *path, int flags, ...) {                     \
        va_list more;                                                                \
        va_start(more, flags);                                                       \
        mode_t mode = va_arg(more, mode_t);                                          \
        va_end(more);                                                                \
        pthread_mutex_lock(&lock);                                                   \
        struct stat before;                                                          \
        int existed = folder != AT_FDCWD || !watched(path) || !stat(path, &before);  \
        int fd = REAL(function)(folder, path, flags, mode), error = errno;           \
        opened(fd, path, existed, flags);                                            \
        pthread_mutex_unlock(&lock);                                                 \
        errno = error;                                                               \
        return fd;                                                                   \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < FDS) fds[fd].what = NONE;
    int result = fd == log_fd ? 0 : REAL(close)(fd), error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

/* Calls `call` and, where it succeeds on a watched file, notes it. */
#define NOTED(type, call, what, entry)           \
    pthread_mutex_lock(&lock);                   \
    type result = call;                          \
    int error = errno;                           \
    if (result >= 0 && seen(fd, what)) entry;    \
    pthread_mutex_unlock(&lock);                 \
    errno = error;                               \
    return result

ssize_t write(int fd, const void *data, size_t size) {
    if (!seen(fd, PLAIN)) return REAL(write)(fd, data, size);
    NOTED(ssize_t, REAL(write)(fd, data, size), PLAIN,
          note('w', fds[fd].inode, lseek(fd, 0, SEEK_CUR) - result, data, result));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    NOTED(ssize_t, REAL(pwrite)(fd, data, size, at), PLAIN, note('w', fds[fd].inode, at, data, result));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    NOTED(ssize_t, REAL(pwrite64)(fd, data, size, at), PLAIN, note('w', fds[fd].inode, at, data, result));
}
int ftruncate(int fd, off_t size) {
    NOTED(int, REAL(ftruncate)(fd, size), PLAIN, note('t', fds[fd].inode, size, NULL, 0));
}
int ftruncate64(int fd, off64_t size) {
    NOTED(int, REAL(ftruncate64)(fd, size), PLAIN, note('t', fds[fd].inode, size, NULL, 0));
}

#define ALLOCATED (result == 0 && seen(fd, PLAIN))
int posix_fallocate(int fd, off_t at, off_t size) {
    pthread_mutex_lock(&lock);
    int result = REAL(posix_fallocate)(fd, at, size);
    if (ALLOCATED) note('a', fds[fd].inode, at + size, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int posix_fallocate64(int fd, off64_t at, off64_t size) { return posix_fallocate(fd, at, size); }
int fallocate(int fd, int mode, off_t at, off_t size) {
    NOTED(int, REAL(fallocate)(fd, mode, at, size), PLAIN, note('a', fds[fd].inode, at + size, NULL, 0));
}
int fallocate64(int fd, int mode, off64_t at, off64_t size) { return fallocate(fd, mode, at, size); }

/* Syncs are written down and not carried out: nobody cuts the power here, and they are slow. */
#define SYNC(function)                                                                    \
    int function(int fd) {                                                                \
        pthread_mutex_lock(&lock);                                                        \
        int known = seen(fd, PLAIN) || seen(fd, FOLDER);                                  \
        int result = known ? 0 : REAL(function)(fd), error = errno;                       \
        if (result == 0 && seen(fd, PLAIN)) note('s', fds[fd].inode, 0, NULL, 0);         \
        if (result == 0 && seen(fd, FOLDER)) note_name('d', fds[fd].inode, fds[fd].name); \
        pthread_mutex_unlock(&lock);                                                      \
        errno = error;                                                                    \
        return result;                                                                    \
    }
SYNC(fsync)
SYNC(fdatasync)

/* Calls `call` and, where it succeeds on a watched name, notes it. */
#define NAMED(call, path, kind)                                               \
    pthread_mutex_lock(&lock);                                                \
    int result = call, error = errno;                                         \
    if (result == 0 && watched(path)) note_name(kind, 0, watched(path));      \
    pthread_mutex_unlock(&lock);                                              \
    errno = error;                                                            \
    return result

int unlink(const char *path) { NAMED(REAL(unlink)(path), path, 'u'); }
int unlinkat(int folder, const char *path, int flags) { NAMED(REAL(unlinkat)(folder, path, flags), path, 'u'); }
int mkdir(const char *path, mode_t mode) { NAMED(REAL(mkdir)(path, mode), path, 'm'); }

static void renamed(const char *old, const char *new) {
    const char *from = watched(old), *to = watched(new);
    char both[2 * PATH_MAX];
    if (!from || !to) return;
    size_t first = strlen(from) + 1, second = strlen(to);
    memcpy(both, from, first);
    memcpy(both + first, to, second);
    note('r', 0, 0, both, first + second);
}
#define RENAME(call)                       \
    pthread_mutex_lock(&lock);             \
    int result = call, error = errno;      \
    if (result == 0) renamed(old, new);    \
    pthread_mutex_unlock(&lock);           \
    errno = error;                         \
    return result

int rename(const char *old, const char *new) { RENAME(REAL(rename)(old, new)); }
int renameat(int a, const char *old, int b, const char *new) { RENAME(REAL(renameat)(a, old, b, new)); }
