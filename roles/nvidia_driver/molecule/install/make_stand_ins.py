#!/usr/bin/python3
"""Makes, on a throwaway host, a stand-in machine with a GPU and a stand-in for NVIDIA's apt repository.

/srv/machine is the root that the fact script looks at. /srv/nvidia/debian12/x86_64 is a flat repository with
two branches of the driver, of which the newer one must not win; its packages write the driver's files into
/srv/machine. /usr/local/sbin/modprobe stands in for the kernel: it loads what is installed there.
`--nouveau` lets nouveau hold the card, so that only a reboot helps.
"""

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

MACHINE = Path("/srv/machine")
NVIDIA = Path("/srv/nvidia/debian12/x86_64")
DEBIAN = Path("/srv/debian")
BRANCH, NEWER = "580.159.04", "620.11.02"


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def package(repository: Path, name: str, version: str, files: dict[str, str], postinst: str = "") -> None:
    """A package of these files in the repository."""
    tree = Path("/srv/build", f"{name}_{version}")
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: test <test@localhost>\n"
    write(tree / "DEBIAN/control", control + f"Description: stand-in for {name}\n")
    if postinst:
        write(tree / "DEBIAN/postinst", f"#!/bin/sh\nset -e\n{postinst}", 0o755)
    for path, content in files.items():
        write(tree / path.lstrip("/"), content)
    repository.mkdir(parents=True, exist_ok=True)
    file = f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, repository / file], check=True)
    if name == "cuda-keyring":
        (repository / file).rename(repository / "cuda-keyring_1.1-1_all.deb")
        return
    data = (repository / file).read_bytes()
    with (repository / "Packages").open("a") as index:
        index.write(control + f"Filename: ./{file}\nSize: {len(data)}\n")
        index.write(f"SHA256: {hashlib.sha256(data).hexdigest()}\nDescription: stand-in\n\n")


def driver(version: str) -> None:
    """The packages of one branch."""
    library = MACHINE / "usr/lib/x86_64-linux-gnu"
    package(NVIDIA, "nvidia-kernel-open-dkms", f"{version}-1", {f"/srv/modules/{version}": ""})
    smi = (
        f"#!/bin/sh\n[ -e {MACHINE}/proc/driver/nvidia/version ] || {{ echo no driver; exit 9; }}\n"
        f"echo '0, NVIDIA L4, 23034, GPU-1, 8.9, {version}'\n"
    )
    package(
        NVIDIA,
        "nvidia-driver-cuda",
        f"{version}-1",
        {f"{library}/libcuda.so.{version}": ""},
        f"ln -sf libcuda.so.{version} {library}/libcuda.so.1\nmkdir -p {MACHINE}/usr/bin\n"
        f"cat > {MACHINE}/usr/bin/nvidia-smi <<'END'\n{smi}END\nchmod 755 {MACHINE}/usr/bin/nvidia-smi\n",
    )
    unit = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    package(
        NVIDIA,
        "nvidia-persistenced",
        f"{version}-1",
        {"/lib/systemd/system/nvidia-persistenced.service": unit},
    )
    package(NVIDIA, "nvidia-modprobe", f"{version}-1", {f"/srv/modprobe/{version}": ""})


def main() -> None:
    """Make both."""
    card = MACHINE / "sys/bus/pci/devices/0000:01:00.0"
    write(card / "vendor", "0x10de\n")
    write(card / "device", "0x27b8\n")
    write(card / "class", "0x030200\n")
    write(MACHINE / "proc/1/environ", "")
    if "--nouveau" in sys.argv:
        write(MACHINE / "sys/module/nouveau/refcnt", "1\n")

    package(DEBIAN, f"linux-headers-{platform.release()}", "1", {"/srv/headers": ""})
    write(Path("/etc/apt/sources.list.d/headers.list"), f"deb [trusted=yes] file:{DEBIAN} ./\n")

    driver(NEWER)
    driver(BRANCH)
    names = "nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced nvidia-modprobe"
    pin = f"Package: {names}\nPin: version 580.*\nPin-Priority: 1000\n"
    package(
        NVIDIA,
        "nvidia-driver-pinning-580",
        "580-1",
        {"/etc/apt/preferences.d/nvidia-driver-pinning-580": pin},
    )
    package(
        NVIDIA,
        "cuda-keyring",
        "1.1-1",
        {
            "/usr/share/keyrings/cuda-archive-keyring.gpg": "",
            "/etc/apt/sources.list.d/cuda-debian12-x86_64.list": f"deb [trusted=yes] file:{NVIDIA} ./\n",
        },
    )
    modprobe = f"""#!/bin/sh
# Stands in for the kernel: the newest module that is installed becomes the driver that runs.
echo "$@" >> /srv/modprobe.log
version=$(ls /srv/modules | tail -1)
mkdir -p {MACHINE}/proc/driver/nvidia
name="NVIDIA UNIX Open Kernel Module for x86_64"
echo "NVRM version: $name  $version  Release Build" > {MACHINE}/proc/driver/nvidia/version
"""
    write(Path("/usr/local/sbin/modprobe"), modprobe, 0o755)

    boot = f"""#!/bin/sh
# Stands in for what a kernel does at boot with the files that the role wrote.
rm -rf {MACHINE}/proc/driver
grep -qs '^blacklist nouveau' /etc/modprobe.d/*.conf && rm -rf {MACHINE}/sys/module/nouveau
[ -d /srv/modules ] || exit 0
for module in $(grep -hv '^#' /etc/modules-load.d/hotline-nvidia.conf); do
    /usr/local/sbin/modprobe $module
done
"""
    write(Path("/srv/boot"), boot, 0o755)
    unit = "[Service]\nType=oneshot\nExecStart=/srv/boot\n[Install]\nWantedBy=sysinit.target\n"
    write(Path("/etc/systemd/system/stand-in-kernel.service"), unit)
    subprocess.run(["systemctl", "enable", "stand-in-kernel.service"], check=True)


if __name__ == "__main__":
    main()
