"""The gate: checks packages of teams, and the platform's part, before publication. ``check`` is its entrance."""
