"""What the boards' host programs load, and packages for them."""

GUARD_FLOOR_MIB = 128
"""What axllm's memory guard leaves free, unless mem_guard_floor_mb of config.json says otherwise."""
