"""A finished bundle: completing, describing, verifying, packing and inspecting it."""
