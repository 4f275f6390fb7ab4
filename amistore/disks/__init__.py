"""Disks of other formats than raw, read to be imported: qemu's formats, and compressed or piped raw disks."""
