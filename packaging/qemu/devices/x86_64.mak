# The devices of qemu-system-x86_64. What a machine needs to start comes by itself.

# Machines.
CONFIG_Q35=y
CONFIG_MICROVM=y

# Where devices are plugged in: q35's slots, and hot-plug.
CONFIG_PCIE_PORT=y
CONFIG_PCI_BRIDGE=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_MMIO=y

# The channel, disks, network, entropy.
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_RNG=y
# Memory that comes and goes.
CONFIG_VIRTIO_BALLOON=y
CONFIG_VIRTIO_MEM=y
CONFIG_VIRTIO_PMEM=y
# Served by other processes, or by the host's kernel.
CONFIG_VHOST_USER_FS=y
CONFIG_VHOST_USER_BLK=y
CONFIG_VHOST_USER_VSOCK=y
CONFIG_VHOST_VSOCK=y

# The timer that states its frequency: emulated guests need not measure it.
CONFIG_HPET=y
# A guest that panics says so.
CONFIG_PVPANIC_PCI=y
