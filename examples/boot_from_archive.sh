#!/bin/sh
# Boots a machine from its archive, where it lies. Nothing is extracted, and nothing of the archive is changed.
#
#   sh examples/boot_from_archive.sh ARCHIVE [QEMU'S WORDS]
#
# ARCHIVE is a path or a URL: web.bin, https://example.com/web.bin, s3://archive/web.bin (extra "remote").
# QEMU'S WORDS are added: -enable-kvm where there is KVM, else the machine is emulated, which is slow;
# -bios /usr/share/ovmf/OVMF.fd where the image's boot_mode is uefi; -m 4G for more memory.
# The serial line is this terminal; Ctrl-A X ends the machine. PYTHON is a Python that has amistore.
set -eu
[ $# -gt 0 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
archive=$1
shift

# The server prints the URI of each disk, the root device's first, into a pipe, and ends by SIGTERM.
folder=$(mktemp -d)
mkfifo "$folder/uris"
"${PYTHON:-python3}" -c '
import signal
import sys

import amistore

ends = {signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there are threads
with amistore.open(sys.argv[1]) as archive, archive.serve_nbd(path=sys.argv[2]) as server:
    print(*(server.uri(volume.snapshot_id) for volume in archive.volumes), "ready", sep="\n", flush=True)
    signal.sigwait(ends)
' "$archive" "$folder/nbd" >"$folder/uris" &
server=$!
trap 'kill $server 2>/dev/null; wait; rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM

uri=
while read -r uri && [ "$uri" != ready ]; do
    set -- "$@" -drive "file=$uri,format=raw,if=virtio"
done <"$folder/uris"
[ "$uri" = ready ] || exit 1 # the server has said why

# -snapshot keeps what the guest writes in a temporary file.
qemu-system-x86_64 -cpu max -m 2G -nographic -snapshot "$@"
