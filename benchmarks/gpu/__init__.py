"""What a card does for workers: checked by NVML, and measured beside bare loops on it."""
