"""A grid as one compiled program on all devices of this process."""
