//! Every backend against the conformance suite, against tools that we did not write, and against
//! files that lie. Needs root (loop devices, a small file system) and qemu-utils;
//! `tests/setup.sh` installs them.

mod broken_devices;
mod common;
mod conformance;
mod device_dir;
mod direct;
mod full_disk;
mod hostile_vmdk;
mod locks;
mod overlay;
mod production;
mod stream_vmdk;
mod vmdk;
