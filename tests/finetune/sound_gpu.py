"""What nvidia-smi says of a sound GPU."""

SOUND = "0, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 0, 0x0000000000000001, 31, 345, 1980, 16, Disabled\n"
