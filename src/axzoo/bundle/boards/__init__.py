"""What the host programs of boards load: the lengths that they derive, their config files, their chat templates."""
