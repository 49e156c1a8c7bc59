"""What the guests are made of, taken from Debian: tools for this machine, kernels, a root file system.

Everything lands in one cache directory, keyed by what it was made from, so that a fresh clone finds it again. Packages are
fetched through a private apt state: the machine's own sources and package lists stay as they are. Called by `lane`;
knows nothing of QEMU or of jobs.
"""
import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
GUEST = os.path.join(HERE, "guest")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL_SUITE = "bookworm"  # with its backports it holds both 6.1 and 6.12

# What `lane packages` installs, and the program that shows that it is there.
TOOLS = {
    "qemu-system-x86": "qemu-system-x86_64",
    "mmdebstrap": "mmdebstrap",
    "e2fsprogs": "mke2fs",
    "kmod": "depmod",
    "busybox-static": "busybox",
    "cpio": "cpio",
    "xz-utils": "xz",
    "zstd": "zstd",
    "lz4": "lz4",
    "debian-archive-keyring": KEYRING,
}
# With bookworm's own QEMU 7.2 the exec system call is five times slower under TCG.
FROM_BACKPORTS = {"bookworm": ["qemu-system-x86"]}

# The root file systems that a guest can have, each with an init in `machine.INITS`.
MINI = ["busybox-static", "kmod", "mount", "python3"]
SYSTEMD = [*MINI, "dbus", "systemd", "systemd-sysv"]
ROOTS = {
    "mini": MINI,
    "systemd": SYSTEMD,
    "trixie": SYSTEMD,
    "docker": [*MINI, "apparmor", "docker.io"],
}
# Root file systems from another release than this machine's.
SUITES = {"trixie": "trixie"}
# Loaded by the initrd, before the root disk can be seen.
MODULES_FOR_ROOT = ["virtio_pci", "virtio_blk", "ext4"]


class LaneError(Exception):
    """Something that the caller must know, as one sentence."""


def say(text):
    print(f"lane: {text}", file=sys.stderr, flush=True)


def run(command, **options):
    try:
        return subprocess.run(command, check=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LaneError(f"{command[0]} failed: {error}") from error


def output(command, **options):
    return run(command, stdout=subprocess.PIPE, text=True, **options).stdout


def program(name):
    """The path of `name`, looked for in the system's directories too, which the caller's PATH may lack."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise LaneError(f"{name} is not installed (run `tests/vm/lane packages` as root)")
    return path


def cache_dir():
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME") or "/root", ".cache")
    return os.path.abspath(os.environ.get("HALSUP_VM_CACHE") or os.path.join(home, "halsup-vm"))


@contextlib.contextmanager
def made_once(name, parts):
    """Yields (path, directory to make it in, or None where it is there already) for the cached thing `name`.

    The path carries a hash of `parts`; what is made in the directory replaces older versions of `name` only when complete.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = os.path.join(cache_dir(), f"{name}-{digest}")
    os.makedirs(cache_dir(), exist_ok=True)
    with open(os.path.join(cache_dir(), f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(path):
            yield path, None
            return
        work = tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=cache_dir())
        try:
            yield path, work
            for old in glob.glob(os.path.join(cache_dir(), f"{name}-*")):
                shutil.rmtree(old)
            os.rename(work, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def text_of(*paths):
    return [open(path, errors="surrogateescape").read() for path in paths]


# ---------------------------------------------------------------------------------------------------------------- packages


def codename():
    """This machine's Debian release; `bookworm` where it is not a Debian."""
    release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', open("/etc/os-release").read()))
    return release.get("VERSION_CODENAME", KERNEL_SUITE) if release.get("ID") == "debian" else KERNEL_SUITE


def mirror():
    """The Debian mirror that this machine's apt sources name, else Debian's own."""
    for path in sorted(glob.glob("/etc/apt/sources.list.d/*.sources") + glob.glob("/etc/apt/sources.list*/*.list")
                       + glob.glob("/etc/apt/sources.list")):
        found = re.search(r"(?m)^(?:URIs:|deb(?:\s+\[[^]]*\])?)\s*(\S+/debian)/?(?:\s|$)", open(path).read())
        if found:
            return found.group(1)
    return "http://deb.debian.org/debian"


class Apt:
    """A private apt state for one Debian release and its backports."""

    def __init__(self, suite):
        self.dir = os.path.join(cache_dir(), f"apt-{suite}")
        for sub in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(self.dir, sub), exist_ok=True)
        parts = [suite, f"{suite}-updates"] + ([f"{suite}-backports"] if suite in FROM_BACKPORTS else [])
        lines = [f"deb [signed-by={KEYRING}] {mirror()} {part} main\n" for part in parts]
        lines.append(f"deb [signed-by={KEYRING}] {mirror()}-security {suite}-security main\n")
        with open(os.path.join(self.dir, "sources.list"), "w") as sources:
            sources.writelines(lines)
        settings = {
            "Dir::Etc::sourcelist": os.path.join(self.dir, "sources.list"),
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": os.path.join(self.dir, "lists"),
            "Dir::Cache::archives": os.path.join(self.dir, "archives"),
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "DPkg::Lock::Timeout": "120",
        }
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def get(self, *words, **options):
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        run([program("apt-get"), *self.options, *words], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment, **options)

    def query(self, *words):
        return output([program("apt-cache"), *self.options, *words])


def missing_packages():
    def there(proof):
        try:
            return os.path.exists(proof) or bool(program(proof))
        except LaneError:
            return False
    return [package for package, proof in TOOLS.items() if not there(proof)]


def install_packages():
    """Installs what the lane needs and this machine lacks."""
    missing = missing_packages()
    if not missing:
        return
    if os.geteuid() != 0:
        raise LaneError(f"not root, cannot install {' '.join(missing)}")
    suite = codename()
    apt = Apt(suite)
    backports = [package for package in missing if package in FROM_BACKPORTS.get(suite, [])]
    say(f"installing {' '.join(missing)} from Debian {suite}" + (f", of them from its backports {' '.join(backports)}" if backports else "")
        + f"; the list of sources is our own, in {apt.dir}, and /etc/apt stays as it is")
    apt.get("update", "-qq")
    # QEMU's recommended packages are displays, sound and network helpers.
    install = ["install", "-qq", "-y", "--no-install-recommends"]
    if backports:
        apt.get(*install, "-t", f"{suite}-backports", *backports)
    if len(missing) > len(backports):
        apt.get(*install, *(package for package in missing if package not in backports))


# ----------------------------------------------------------------------------------------------------------------- kernels


def version_key(name):
    return [int(number) for number in re.findall(r"\d+", name)]


def kernel(series):
    """The directory of the newest cloud kernel of `series` (such as `6.12`): vmlinux, initrd, modules.img, release."""
    with made_once(f"kernel-{series}", text_of(os.path.join(GUEST, "initrd"), __file__)) as (path, work):
        if work is not None:
            say(f"fetching a {series} kernel from Debian")
            apt = Apt(KERNEL_SUITE)
            apt.get("update", "-qq")
            build_kernel(download_kernel(apt, series, work), work)
            shutil.rmtree(os.path.join(work, "package"))
    return path


def download_kernel(apt, series, work):
    """Unpacks the newest kernel package of `series` into `work`/package and returns its release."""
    names = re.findall(r"(?m)^linux-image-(\S+-cloud-amd64) ", apt.query("search", "--names-only", "^linux-image-[0-9].*-cloud-amd64$"))
    releases = sorted((name for name in names if name.startswith(f"{series}.")), key=version_key)
    if not releases:
        raise LaneError(f"Debian {KERNEL_SUITE} has no {series} cloud kernel")
    release = releases[-1]
    apt.get("download", "-qq", f"linux-image-{release}", cwd=work)
    (package,) = glob.glob(os.path.join(work, "*.deb"))
    run([program("dpkg-deb"), "-x", package, os.path.join(work, "package")])
    os.unlink(package)
    return release


def build_kernel(release, work):
    package = os.path.join(work, "package")
    with open(os.path.join(work, "vmlinux"), "wb") as image:
        image.write(vmlinux(os.path.join(package, "boot", f"vmlinuz-{release}")))
    run([program("depmod"), "-b", package, release], stderr=subprocess.DEVNULL)
    make_disk(os.path.join(package, "lib", "modules"), os.path.join(work, "modules.img"), 512)
    build_initrd(package, release, work)


def vmlinux(path):
    """The uncompressed kernel inside a vmlinuz: a TCG guest would spend a second on unpacking it."""
    packed = open(path, "rb").read()
    for magic, unpack in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4"), (b"\xfd7zXZ\0", "xz")):
        for found in re.finditer(re.escape(magic), packed):
            # What follows the compressed kernel makes the program complain at its end; only its output counts.
            result = subprocess.run([program(unpack), "-dcq"], input=packed[found.start():], capture_output=True, check=False)
            if result.stdout.startswith(b"\x7fELF"):
                return result.stdout
    raise LaneError(f"no kernel image found in {path}")


def build_initrd(package, release, work):
    """An initrd of busybox, `guest/initrd` and the few modules that show the root disk."""
    tree = os.path.join(package, "initrd")
    for sub in ("bin", "proc", "sys", "dev", "root", "modules"):
        os.makedirs(os.path.join(tree, sub))
    shutil.copy(program("busybox"), os.path.join(tree, "bin/busybox"))
    shutil.copy(os.path.join(GUEST, "initrd"), os.path.join(tree, "init"))
    order = []
    for module in MODULES_FOR_ROOT:
        shown = output([program("modprobe"), "-d", package, "-S", release, "--show-depends", module])
        order += [path for path in re.findall(r"(?m)^insmod (\S+)", shown) if path not in order]
    for number, path in enumerate(order):
        name = os.path.join(tree, "modules", f"{number:02d}-{os.path.basename(path)}")
        shutil.copy(path, name)
        if name.endswith(".xz"):
            run([program("xz"), "-d", name])
    names = subprocess.run(["find", "."], cwd=tree, stdout=subprocess.PIPE, check=True).stdout
    with open(os.path.join(work, "initrd"), "wb") as archive:
        run([program("cpio"), "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=tree, input=names, stdout=archive)
    with open(os.path.join(work, "release"), "w") as file:
        file.write(release)


def make_disk(tree, image, mebibytes):
    """An ext4 image of `tree`, made without mounting anything."""
    run([program("mke2fs"), "-q", "-F", "-t", "ext4", "-d", tree, "-O", "^has_journal", "-m", "0",
         "-E", "root_owner=0:0", image, f"{mebibytes}m"], stdout=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------------------------ root file system


def root(kind):
    """The disk image of the root file system `kind`."""
    files = sorted(os.path.join(GUEST, name) for name in os.listdir(GUEST))
    with made_once(f"root-{kind}", [suite_of(kind), *ROOTS[kind], *text_of(*files, __file__)]) as (path, work):
        if work is not None:
            say(f"building the root file system {kind!r} from Debian {suite_of(kind)}")
            build_root(kind, work)
    return os.path.join(path, "disk.img")


def suite_of(kind):
    return SUITES.get(kind, codename())


def build_root(kind, work):
    if os.geteuid() != 0:
        raise LaneError("not root, cannot build a root file system")
    tree = os.path.join(work, "tree")
    suite = suite_of(kind)
    sources = "\n".join(f"deb [signed-by={KEYRING}] {line}" for line in
                        (f"{mirror()} {suite} main", f"{mirror()}-security {suite}-security main"))
    # Without /dev, /proc and /sys, which these packages can be installed without: nothing is mounted on this machine.
    run([program("mmdebstrap"), "--mode=root", "--variant=essential", "--quiet", "--skip=chroot/mount",
         "--include=" + ",".join(ROOTS[kind]), "--dpkgopt=force-unsafe-io",
         "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
         "--dpkgopt=path-exclude=/usr/share/man/*", suite, tree, "-"],
        input=sources.encode(), stdout=sys.stderr, env=dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"))
    os.makedirs(os.path.join(tree, "vm"))
    for name in ("prepare", "agent"):
        shutil.copy(os.path.join(GUEST, name), os.path.join(tree, "vm", name))
    if kind == "systemd":
        install_unit(tree)
    else:
        shutil.copy(os.path.join(GUEST, "inittab"), os.path.join(tree, "etc/inittab"))
    if kind == "docker":
        configure_docker(tree)
    os.makedirs(os.path.join(tree, "lib/modules"), exist_ok=True)
    for name, text in (("hostname", "halsup-vm\n"), ("hosts", "127.0.0.1 localhost halsup-vm\n::1 localhost\n"),
                       ("machine-id", "0123456789abcdef0123456789abcdef\n")):
        with open(os.path.join(tree, "etc", name), "w") as file:
            file.write(text)
    make_disk(tree, os.path.join(work, "disk.img"), 2048)
    shutil.rmtree(tree)


def configure_docker(tree):
    """Leaves out of Docker what a guest without a network cannot use."""
    os.makedirs(os.path.join(tree, "etc/docker"), exist_ok=True)
    shutil.copy(os.path.join(GUEST, "docker.json"), os.path.join(tree, "etc/docker/daemon.json"))


def install_unit(tree):
    """Makes systemd start the agent, and neither a login on the console nor what only costs time."""
    units = os.path.join(tree, "etc/systemd/system")
    shutil.copy(os.path.join(GUEST, "halsup-vm-agent.service"), units)
    wanted = os.path.join(units, "multi-user.target.wants")
    os.makedirs(wanted, exist_ok=True)
    os.symlink("../halsup-vm-agent.service", os.path.join(wanted, "halsup-vm-agent.service"))
    os.symlink("/lib/systemd/system/multi-user.target", os.path.join(units, "default.target"))
    for unit in ("getty.target", "systemd-logind.service", "systemd-update-utmp.service", "apt-daily.timer", "e2scrub_all.timer",
                 "fstrim.timer", "dpkg-db-backup.timer", "systemd-pstore.service"):
        path = os.path.join(units, unit)
        if not os.path.lexists(path):
            os.symlink("/dev/null", path)
