"""The vendor's compiler."""
