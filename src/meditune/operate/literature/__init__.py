"""New research: taken in, checked, kept current, indexed, and made into training pairs."""
