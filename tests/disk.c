/* Between a process and its disk (LD_PRELOAD): writes down what is done to the files of a folder, and has it
 * fail.
 *
 * The process calls disk_record(folder, trace) and disk_fail(...) itself, through ctypes. A record of the
 * trace is `op (1 byte), file descriptor (4), offset (8), length (8)` and as many bytes; tests/disks.py
 * reads it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 4096

enum { WRITES = 1, SYNCS = 2, NAMES = 4 };

/* Held around a call and its record, so that the trace has them in the order in which they were done. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[1024];
static int trace = -1, watched[FILES];
static long kinds, before, failing, counted;
static int fails_with, halves;

int disk_record(const char *at, const char *to) {
    snprintf(folder, sizeof folder, "%s", at);
    trace = syscall(SYS_openat, AT_FDCWD, to, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    return trace;
}

/* From the n-th call of these kinds on (from 1), so many fail (-1: all); the first may do half of it instead.
 * With the error 0 the process is gone there, as after kill -9.
 */
void disk_fail(long of, long nth, long times, int error, int half) {
    pthread_mutex_lock(&lock);
    kinds = of, before = nth - 1, failing = times, fails_with = error, halves = half, counted = 0;
    pthread_mutex_unlock(&lock);
}

/* How many calls of these kinds there were since disk_fail. */
long disk_calls(void) { return counted; }

static int is_watched(int fd) { return fd >= 0 && fd < FILES && watched[fd]; }

static const char *within(const char *path) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length)) return NULL;
    return path[length] == '/' ? path + length + 1 : path[length] ? NULL : path + length;
}

static void note(char op, int fd, int64_t offset, const void *data, int64_t length) {
    char head[21] = {op};
    if (trace < 0) return;
    memcpy(head + 1, &fd, 4);
    memcpy(head + 5, &offset, 8);
    memcpy(head + 13, &length, 8);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, (size_t)length}};
    if (syscall(SYS_writev, trace, parts, 2) != (long)sizeof head + length) _exit(99);
}

/* Whether a call fails; with halves and a length, that many bytes are to be written before. */
static int refused(int kind, size_t *length) {
    if (!(kinds & kind)) return 0;
    counted++;
    if (before > 0) return before--, 0;
    if (!failing) return 0;
    if (halves && length && *length > 1) return halves = 0, *length /= 2, 0;
    if (!fails_with) _exit(9);
    if (failing > 0) failing--;
    return errno = fails_with, 1;
}

static int opened(const char *path, int flags, mode_t mode) {
    const char *name = within(path);
    if (!name) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat found;
    int makes = (flags & O_CREAT) && stat(path, &found);
    int fd = makes && refused(NAMES, NULL) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < FILES) {
        watched[fd] = 1;
        note(makes ? 'C' : 'O', fd, 0, name, strlen(name));
        if (flags & O_TRUNC) note('T', fd, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name)                                       \
    int name(const char *path, int flags, ...) {         \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode_t mode = flags & O_CREAT ? va_arg(rest, int) : 0; \
        va_end(rest);                                    \
        return opened(path, flags, mode);                \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (!is_watched(fd)) return syscall(SYS_close, fd);
    pthread_mutex_lock(&lock);
    watched[fd] = 0;
    note('X', fd, 0, NULL, 0);
    int result = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

static ssize_t put(int fd, const void *data, size_t length, int64_t offset) {
    if (offset < 0) return syscall(SYS_write, fd, data, length);
    return syscall(SYS_pwrite64, fd, data, length, offset);
}

static ssize_t written(int fd, const void *data, size_t length, int64_t offset) {
    if (!is_watched(fd)) return put(fd, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t result = -1;
    if (!refused(WRITES, &length)) {
        int64_t at = offset < 0 ? lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR) : offset;
        result = put(fd, data, length, offset);
        if (result > 0) note('W', fd, at, data, result);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int fd, const void *data, size_t length) { return written(fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    return written(fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return written(fd, data, length, offset);
}

static int resized(int fd, int64_t size, int grows) {
    pthread_mutex_lock(&lock);
    struct stat found;
    int result = -1;
    if (!is_watched(fd) || !refused(WRITES, NULL)) {
        result = grows ? syscall(SYS_fallocate, fd, 0, 0, size) : syscall(SYS_ftruncate, fd, size);
        if (!result && is_watched(fd) && !fstat(fd, &found)) note('T', fd, found.st_size, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t size) { return resized(fd, size, 0); }
int ftruncate64(int fd, off64_t size) { return resized(fd, size, 0); }
int posix_fallocate(int fd, off_t offset, off_t length) {
    return resized(fd, offset + length, 1) ? errno : 0;
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    return resized(fd, offset + length, 1) ? errno : 0;
}

static int synced(int fd, long call) {
    if (!is_watched(fd)) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    int result = refused(SYNCS, NULL) ? -1 : (int)syscall(call, fd);
    if (!result) note('S', fd, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* A name that goes, or comes, or both: its record holds the two names, each with a zero behind it. */
static int renamed(char op, const char *from, const char *to) {
    const char *one = within(from), *other = within(to);
    char names[2048];
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!(one || other) || op == 'U' || !refused(NAMES, NULL)) {
        result = op == 'R'   ? (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0)
                 : op == 'L' ? (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0)
                             : (int)syscall(SYS_unlinkat, AT_FDCWD, from, 0);
        if (!result && (one || other)) {
            int length = snprintf(names, sizeof names, "%s%c%s", one ? one : "", 0, other ? other : "");
            note(op, -1, 0, names, length);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) { return renamed('R', from, to); }
int link(const char *from, const char *to) { return renamed('L', from, to); }
int unlink(const char *path) { return renamed('U', path, ""); }
