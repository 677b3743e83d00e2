"""The gate: what a team, or the platform, may publish. ``check`` is its entrance."""
