"""Methods side by side: who takes part, what is measured of each, what that says, and how it is shown."""
