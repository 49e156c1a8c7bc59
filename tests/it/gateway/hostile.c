/* What a gateway tries that was taken over: each line of its output is one attempt, and whether it was let. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <unistd.h>

static void tell(const char *what, long got) {
    printf("%s: %s\n", what, got < 0 ? "refused" : "LET");
    fflush(stdout);
}

static void notify(void) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (path && fd >= 0) {
        strncpy(at.sun_path, path, sizeof at.sun_path - 1);
        sendto(fd, "READY=1\n", 8, 0, (struct sockaddr *)&at, sizeof at);
        close(fd);
    }
}

/* Asks the daemon something without a token; refused is an answer that is an error. */
static void ask(const char *what, const char *call) {
    struct sockaddr_un at = { .sun_family = AF_UNIX, .sun_path = "/daemon/control.sock" };
    char answer[65536];
    long got = -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0 && write(fd, call, strlen(call) + 1) > 0) {
        long count = read(fd, answer, sizeof answer - 1);
        answer[count > 0 ? count : 0] = 0;
        got = count > 0 && strstr(answer, "\"error\"") == NULL ? 0 : -1;
    }
    if (fd >= 0)
        close(fd);
    tell(what, got);
}

static int to(int family, int type, int protocol) {
    int fd = socket(family, type, protocol);
    if (fd >= 0)
        close(fd);
    return fd;
}

int main(void) {
    char *none[] = { NULL };
    notify();
    tell("write its own file", open("/halsup-gateway", O_WRONLY));
    tell("make a file", open("/tmp/x", O_WRONLY | O_CREAT, 0600));
    tell("make a nameless file", open("/tmp", O_RDWR | O_TMPFILE, 0600));
    tell("read the host's passwords", open("/etc/shadow", O_RDONLY));
    tell("read the host's configuration", open("/etc/halsup/halsup.toml", O_RDONLY));
    tell("leave its root", open("/proc/1/root/etc", O_RDONLY));
    tell("read the memory of its init", open("/proc/1/mem", O_RDONLY));
    tell("write to its init", open("/proc/1/mem", O_RDWR));
    tell("unlink the daemon's socket", unlink("/daemon/control.sock"));
    tell("put something beside it", symlink("/x", "/daemon/y"));
    tell("make a directory", mkdir("/daemon/z", 0700));
    tell("make a device", mknod("/tmp/null", S_IFCHR | 0666, 0x103));
    tell("execute a shell", execve("/bin/sh", none, none));
    tell("fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0 ? (pause(), 0) : -1);
    tell("have memory that is a file", syscall(SYS_memfd_create, "x", 0));
    tell("execute what it has written", (long)mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == -1 ? -1 : 0);
    tell("connect by internet", to(AF_INET, SOCK_STREAM, 0));
    tell("connect by internet, version 6", to(AF_INET6, SOCK_STREAM, 0));
    tell("speak to the kernel's network", to(AF_NETLINK, SOCK_RAW, 0));
    tell("hear every packet", to(AF_PACKET, SOCK_RAW, 0));
    tell("encrypt in the kernel", to(AF_ALG, SOCK_SEQPACKET, 0));
    tell("be root", setuid(0));
    tell("be in a group", syscall(SYS_setgroups, 0, 0));
    tell("have a namespace", unshare(CLONE_NEWUSER));
    tell("mount", mount("none", "/tmp", "tmpfs", 0, ""));
    tell("chroot", chroot("/proc"));
    tell("trace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    tell("kill its init", kill(1, SIGKILL));
    tell("kill everybody", kill(-1, SIGKILL));
    tell("load a program into the kernel", syscall(SYS_bpf, 0, 0, 0));
    tell("have a ring", syscall(SYS_io_uring_setup, 1, 0));
    tell("read a key", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
    tell("forget its filter", syscall(SYS_seccomp, 1, 0, 0));
    tell("change what it may", prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    tell("listen", listen(3, 1) == 0 && to(AF_INET, SOCK_STREAM, 0) >= 0 ? 0 : -1);
    {
        struct sockaddr_un hidden = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        memcpy(hidden.sun_path, "\0halsup-test-abstract", 21);
        tell("reach an abstract socket of the host",
             connect(fd, (struct sockaddr *)&hidden, offsetof(struct sockaddr_un, sun_path) + 21));
        tell("bind", bind(fd, (struct sockaddr *)&hidden, offsetof(struct sockaddr_un, sun_path) + 21));
    }
    ask("shut the daemon down", "{\"method\":\"io.halsup.Control.Shutdown\"}");
    ask("take a worker", "{\"method\":\"io.halsup.Control.Claim\",\"parameters\":{\"pool\":\"web\"}}");
    ask("run a program in a worker", "{\"method\":\"io.halsup.Control.Exec\",\"parameters\":{\"target\":\"web.0\",\"command\":[\"id\"]},\"upgrade\":true}");
    ask("stop a worker", "{\"method\":\"io.halsup.Control.Stop\",\"parameters\":{\"target\":\"web\"}}");
    ask("scale a pool", "{\"method\":\"io.halsup.Control.Scale\",\"parameters\":{\"pool\":\"web\",\"count\":0}}");
    ask("make itself a token", "{\"method\":\"io.halsup.Control.CreateToken\",\"parameters\":{\"name\":\"x\",\"role\":\"admin\"}}");
    ask("list the tokens", "{\"method\":\"io.halsup.Control.ListTokens\"}");
    ask("read the configuration", "{\"method\":\"io.halsup.Control.GetConfig\"}");
    ask("become another program", "{\"method\":\"io.halsup.Control.Upgrade\",\"parameters\":{\"binary\":\"/bin/sh\"}}");
    ask("read what a worker wrote", "{\"method\":\"io.halsup.Control.Logs\",\"parameters\":{\"worker\":\"web.0\"}}");
    ask("see what a worker is run with", "{\"method\":\"io.halsup.Control.Inspect\",\"parameters\":{\"target\":\"web.0\"}}");
    ask("hear what is asked of workers", "{\"method\":\"io.halsup.Control.Events\",\"parameters\":{\"follow\":true,\"telemetry\":true},\"more\":true}");
    ask("drain itself", "{\"method\":\"io.halsup.Control.Drain\",\"parameters\":{\"draining\":true}}");
    ask("speak for somebody", "{\"method\":\"io.halsup.Control.Identify\",\"parameters\":{\"token\":\"halsup_00\"}}");
    puts("done");
    fflush(stdout);
    for (;;)
        syscall(SYS_poll, 0, 0, 1000);
}
