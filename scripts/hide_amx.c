/* When preloaded, denies a process the use of AMX, as a CPU without AMX would. Used by bench_speed.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

#define ARCH_REQ_XCOMP_PERM 0x1023

long syscall(long number, ...)
{
    long words[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        words[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && words[0] == ARCH_REQ_XCOMP_PERM) {
        errno = EINVAL;
        return -1;
    }
    long (*original)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return original(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
