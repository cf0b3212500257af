# The devices of qemu-system-aarch64. What a machine needs to start comes by itself.

# The machine. It brings its interrupt controller, a serial port, a clock and slots for virtio-mmio.
CONFIG_ARM_VIRT=y

# Where devices are plugged in, and hot-plug.
CONFIG_PCIE_PORT=y
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
# Served by other processes, or by the host's kernel.
CONFIG_VHOST_USER_FS=y
CONFIG_VHOST_USER_BLK=y
CONFIG_VHOST_USER_VSOCK=y
CONFIG_VHOST_VSOCK=y
