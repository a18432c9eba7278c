#!/bin/sh
# musl: fcntl(fd, F_DUPFD_CLOEXEC, n) makes two system calls where glibc makes one. After F_DUPFD_CLOEXEC has succeeded,
# it calls fcntl(new, F_SETFD, FD_CLOEXEC) as well, and takes no notice of the result.
#
# Seen with musl 1.2.5 (of the PyPI package ziglang 0.13.0) and glibc 2.36 (the machine's), strace 6.1, Linux 6.18.44:
#
#   glibc: fcntl(0, F_DUPFD_CLOEXEC, 3) = 3
#   musl:  fcntl(0, F_DUPFD_CLOEXEC, 3) = 3, fcntl(3, F_SETFD, FD_CLOEXEC) = 0
#   musl, where the second call is refused with EPERM: the program still gets its descriptor
#
# Why: Linux before 2.6.24 does not know the flag. musl tries F_DUPFD_CLOEXEC first and sets the flag again in any case.
#
# A duplicate of an eventfd is what a VMM makes for each irqfd, ioeventfd and vhost queue that it hands to another
# thread (`try_clone` of Rust's OwnedFd and of vmm-sys-util's EventFd is this call). A seccomp filter that allows fcntl
# by its command, made from an strace of a build with glibc, kills the same VMM when it is linked with musl, as release
# builds of VMMs often are. If the filter returns an errno instead, nothing shows, and the call costs twice.
#
# Needs: cc with glibc, python3 with pip, PyPI, strace. Ends with 0 if it is still so, with 1 if not, with 77 without
# one of them.
set -eu
for program in cc python3 strace; do
    command -v "$program" >/dev/null || { echo "skipped: no $program"; exit 77; }
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m pip install --quiet --target packages ziglang==0.13.0 2>/dev/null || { echo "skipped: no ziglang"; exit 77; }

cat > duplicate.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Ends with 0 if there is a duplicate. */
int main(void)
{
    int fd = eventfd(0, EFD_CLOEXEC);
    int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return fd < 0 || duplicate < 0 || write(duplicate, "1234567", 8) != 8;
}
C
export ZIG_GLOBAL_CACHE_DIR="$dir/cache" ZIG_LOCAL_CACHE_DIR="$dir/cache"
packages/ziglang/zig cc -static -target x86_64-linux-musl -o musl duplicate.c
cc -o glibc duplicate.c

# commands PROGRAM OPTIONS...: the commands of its fcntl calls.
commands() {
    program=$1
    shift
    strace -qq -e trace=fcntl "$@" -o calls "./$program" || echo failed
    sed -n 's/^fcntl([0-9]*, \([A-Z_]*\).*/\1/p' calls | paste -sd ' '
}
check() {
    printf '%s: %s\n' "$1" "$3"
    [ "$2" = "$3" ] || { echo "was: $2"; exit 1; }
}
check "glibc" "F_DUPFD_CLOEXEC" "$(commands glibc)"
check "musl" "F_DUPFD_CLOEXEC F_SETFD" "$(commands musl)"
check "musl, the second refused" "F_DUPFD_CLOEXEC F_SETFD" "$(commands musl -e inject=fcntl:error=EPERM:when=2)"
