"""What the boards' host programs load, and packages for them."""
